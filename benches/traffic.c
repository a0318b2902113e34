/* Send from one network namespace to another for some time, and print the received rate.
 *
 *     traffic tcp|udp FROM-NETNS-PATH TO-NETNS-PATH TO-ADDRESS MILLISECONDS
 *
 * tcp prints the received bytes per second, udp the received datagrams of 64 bytes per second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5201, CHUNK = 1 << 17, DATAGRAM = 64 };

static int is_tcp, receiver;
static volatile unsigned long long received;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static int socket_in(const char *netns)
{
	int fd = open(netns, O_RDONLY | O_CLOEXEC);
	check(fd >= 0 && setns(fd, CLONE_NEWNET) == 0, netns);
	close(fd);
	fd = socket(AF_INET, is_tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
	check(fd >= 0, "socket");
	return fd;
}

static void *receive(void *unused)
{
	static char buffer[CHUNK];
	ssize_t got;
	int fd = is_tcp ? accept(receiver, NULL, NULL) : receiver;
	check(fd >= 0, "accept");
	while ((got = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		received += is_tcp ? got : 1;
	return unused;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	static char buffer[CHUNK];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	pthread_t thread;
	int one = 1;
	if (argc != 6) {
		fprintf(stderr, "usage: traffic tcp|udp FROM-NETNS-PATH TO-NETNS-PATH TO-ADDRESS MILLISECONDS\n");
		return 2;
	}
	is_tcp = !strcmp(argv[1], "tcp");
	check(inet_pton(AF_INET, argv[4], &to.sin_addr) == 1, argv[4]);
	receiver = socket_in(argv[3]);
	setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	check(bind(receiver, (struct sockaddr *)&to, sizeof(to)) == 0, "bind");
	check(!is_tcp || listen(receiver, 1) == 0, "listen");
	check(pthread_create(&thread, NULL, receive, NULL) == 0, "pthread_create");
	int sender = socket_in(argv[2]);
	check(connect(sender, (struct sockaddr *)&to, sizeof(to)) == 0, "connect");
	double begin = now(), end = begin + atoi(argv[5]) / 1e3;
	while (now() < end)
		send(sender, buffer, is_tcp ? CHUNK : DATAGRAM, MSG_NOSIGNAL);
	printf("%.0f\n", received / (now() - begin));
	return 0;
}
