/* The baseline, floor.c, behind a server: the minimal cost of a client and a server.
 *
 *     served SOCKET
 *     served SOCKET here|elsewhere add|del NETNS-PATH HOST-NAME POD-NAME [ADDRESS/LENGTH,GATEWAY]
 *
 * The first form is the server, the second its client, which waits for one byte. With "here" the server moves
 * to the client's CPU before it serves the request.
 */
#define main floor_main
#include "floor.c"
#undef main
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/un.h>

enum { WORDS = 5 };

struct request {
	int cpu; /* -1: any */
	char words[WORDS][200];
};

static int unix_socket(const char *path, struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	check(fd >= 0 && strlen(path) < sizeof(address->sun_path), path);
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
	return fd;
}

static void go_to(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

static void serve(int connection)
{
	struct request asked;
	cpu_set_t all;
	int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	check(recv(connection, &asked, sizeof(asked), 0) == sizeof(asked), "request");
	check(sched_getaffinity(0, sizeof(all), &all) == 0, "sched_getaffinity");
	if (asked.cpu >= 0)
		go_to(asked.cpu);
	int netns = open(asked.words[1], O_RDONLY | O_CLOEXEC);
	check(netns >= 0, asked.words[1]);
	used = 0;
	char *address = *asked.words[4] ? asked.words[4] : NULL;
	(strcmp(asked.words[0], "add") ? del : add)(netns, asked.words[2], asked.words[3], address);
	check(setns(home, CLONE_NEWNET) == 0 && send(connection, "", 1, 0) == 1, "reply");
	check(sched_setaffinity(0, sizeof(all), &all) == 0, "sched_setaffinity");
}

static void serve_all(const char *path)
{
	struct sockaddr_un address = {0};
	int listener = unix_socket(path, &address);
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 8) == 0, path);
	check(freopen("/dev/null", "w", stdout) != NULL, "/dev/null");
	for (;;) {
		int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		check(connection >= 0, "accept");
		serve(connection);
		/* includes the sockets that floor.c leaves open */
		check(syscall(SYS_close_range, listener + 1, ~0U, 0) == 0, "close_range");
	}
}

static void ask(const char *path, int here, char **words)
{
	struct sockaddr_un address = {0};
	struct request asked = {.cpu = -1};
	char answer;
	int fd = unix_socket(path, &address);
	for (int i = 0; i < WORDS && words[i]; i++) {
		check(strlen(words[i]) < sizeof(asked.words[i]), words[i]);
		strcpy(asked.words[i], words[i]);
	}
	if (here)
		asked.cpu = sched_getcpu();
	check(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, path);
	check(send(fd, &asked, sizeof(asked), 0) == sizeof(asked), "send");
	check(recv(fd, &answer, 1, 0) == 1, "the server ended");
}

int main(int argc, char **argv)
{
	if (argc == 2)
		serve_all(argv[1]);
	if (argc < 7)
		return 2;
	ask(argv[1], !strcmp(argv[2], "here"), argv + 3);
	return 0;
}
