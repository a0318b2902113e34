/* Measure the time in which the kernel moves a device to another network namespace and back.
 *
 *     move NETNS-PATH NETNS-PATH DEVICE ROUNDS
 *
 * The program starts no process and makes no other request: it measures the part of an ADD and a DEL that
 * depends on kernel settings. The device is in the first namespace before and after. Each round prints
 * "add MICROSECONDS" (move, rename, up: one message) and "del MICROSECONDS" (move, rename). A random pause of
 * 15 to 27 ms precedes each move, or it would start at the phase of the kernel's tick in which the last one
 * ended.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define POD_NAME "eth0"

static char buffer[1 << 12];

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void attribute(struct nlmsghdr *message, int type, const void *data, size_t size)
{
	struct rtattr *attr = (struct rtattr *)(buffer + NLMSG_ALIGN(message->nlmsg_len));
	attr->rta_type = type;
	attr->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attr), data, size);
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + RTA_LENGTH(size);
}

static void move(int fd, int index, int netns, const char *name, int up)
{
	struct nlmsghdr *message = memset(buffer, 0, NLMSG_SPACE(sizeof(struct ifinfomsg)));
	struct ifinfomsg *info = NLMSG_DATA(message);
	message->nlmsg_type = RTM_SETLINK;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	message->nlmsg_len = NLMSG_LENGTH(sizeof(*info));
	info->ifi_index = index;
	if (up)
		info->ifi_flags = info->ifi_change = IFF_UP;
	attribute(message, IFLA_NET_NS_FD, &netns, sizeof(netns));
	attribute(message, IFLA_IFNAME, name, strlen(name) + 1);
	check(send(fd, buffer, message->nlmsg_len, 0) == (ssize_t)message->nlmsg_len, "send");
	check(recv(fd, buffer, sizeof(buffer), 0) >= (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)), "recv");
	int error = ((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)buffer))->error;
	if (error) {
		fprintf(stderr, "move: kernel: %s\n", strerror(-error));
		exit(1);
	}
}

static double microseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
	int netns[2], fd[2];
	if (argc != 5) {
		fprintf(stderr, "usage: move NETNS-PATH NETNS-PATH DEVICE ROUNDS\n");
		return 2;
	}
	for (int at = 0; at < 2; at++) {
		netns[at] = open(argv[1 + at], O_RDONLY | O_CLOEXEC);
		check(netns[at] >= 0 && setns(netns[at], CLONE_NEWNET) == 0, argv[1 + at]);
		fd[at] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
		check(fd[at] >= 0, "socket");
	}
	srand(getpid());
	for (int turn = 0; turn < 2 * atoi(argv[4]); turn++) {
		int home = turn % 2;
		struct timespec pause = {.tv_nsec = 15000000 + rand() % 12000000};
		check(setns(netns[home], CLONE_NEWNET) == 0, "setns");
		int index = if_nametoindex(home ? POD_NAME : argv[3]);
		check(index > 0, argv[3]);
		nanosleep(&pause, NULL);
		double begin = microseconds();
		move(fd[home], index, netns[!home], home ? argv[3] : POD_NAME, !home);
		printf("%s %.0f\n", home ? "del" : "add", microseconds() - begin);
	}
	return 0;
}
