/* The baseline of the benchmarks: the kernel requests that an ADD and a DEL need, and nothing else.
 *
 *     floor add|del|add-macvlan|del-macvlan NETNS-PATH HOST-NAME POD-NAME [IPAM]
 *
 * IPAM is the absolute path of a program, which inherits environment and stdin, or ADDRESS/LENGTH,GATEWAY.
 *
 * add starts IPAM and reads the device. One message moves the device, renames it and brings it up. One send
 * on a socket of the pod's namespace sets the address and a default route. del reads the device in the pod,
 * takes it down, starts IPAM, and moves the device to the host's namespace under its old name.
 *
 * With -macvlan the device stays in the host. add-macvlan brings it up without ARP and makes a macvlan in the
 * pod, both in one send. del-macvlan deletes the macvlan, starts IPAM, and takes the device down.
 *
 * The program has no journal and no locks, and does not validate its arguments: it is no plugin.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static char buffer[1 << 16];
static size_t used;
static struct nlmsghdr *message;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

/* --- messages */

static void *begin(int type, int flags, size_t header)
{
	message = (struct nlmsghdr *)(buffer + used);
	memset(message, 0, NLMSG_SPACE(header));
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | flags;
	message->nlmsg_len = NLMSG_LENGTH(header);
	used += NLMSG_SPACE(header);
	return NLMSG_DATA(message);
}

static void attribute(int type, const void *data, size_t size)
{
	struct rtattr *attr = (struct rtattr *)(buffer + used);
	attr->rta_type = type;
	attr->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attr), data, size);
	used += RTA_SPACE(size);
	message->nlmsg_len += RTA_SPACE(size);
}

static void name_attribute(const char *name)
{
	attribute(IFLA_IFNAME, name, strlen(name) + 1);
}

/* --- sockets */

static int rtnetlink(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	check(fd >= 0, "socket");
	return fd;
}

static int rtnetlink_in(int netns)
{
	check(setns(netns, CLONE_NEWNET) == 0, "setns");
	return rtnetlink();
}

/* Send the buffer and receive an answer for each message. The last answer stays in the buffer. */
static void exchange(int fd, int answers)
{
	check(send(fd, buffer, used, 0) == (ssize_t)used, "send");
	while (answers > 0) {
		int left = recv(fd, buffer, sizeof(buffer), 0);
		check(left > 0, "recv");
		for (struct nlmsghdr *head = (void *)buffer; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
			answers--;
			if (head->nlmsg_type == NLMSG_ERROR) {
				int error = ((struct nlmsgerr *)NLMSG_DATA(head))->error;
				if (error) {
					fprintf(stderr, "floor: kernel: %s\n", strerror(-error));
					exit(1);
				}
			}
		}
	}
	used = 0;
}

static int index_of(int fd, const char *name)
{
	begin(RTM_GETLINK, 0, sizeof(struct ifinfomsg));
	name_attribute(name);
	exchange(fd, 1);
	return ((struct ifinfomsg *)NLMSG_DATA((struct nlmsghdr *)buffer))->ifi_index;
}

static struct ifinfomsg *set_link(int index)
{
	struct ifinfomsg *info = begin(RTM_SETLINK, NLM_F_ACK, sizeof(*info));
	info->ifi_index = index;
	return info;
}

/* Open an attribute that contains those that follow, up to close_nest(). */
static struct rtattr *open_nest(int type)
{
	struct rtattr *attr = (struct rtattr *)(buffer + used);
	attr->rta_type = type;
	used += RTA_LENGTH(0);
	message->nlmsg_len += RTA_LENGTH(0);
	return attr;
}

static void close_nest(struct rtattr *attr)
{
	attr->rta_len = buffer + used - (char *)attr;
}

/* Bring a device up without ARP, and make a macvlan on top of it in another namespace. */
static void macvlan(int fd, int index, int netns, const char *name)
{
	int mode = MACVLAN_MODE_PASSTHRU;
	unsigned short flags = MACVLAN_FLAG_NOPROMISC;
	struct ifinfomsg *info = set_link(index);
	info->ifi_flags = info->ifi_change = IFF_UP | IFF_NOARP;
	info = begin(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof(*info));
	info->ifi_flags = info->ifi_change = IFF_UP;
	attribute(IFLA_LINK, &index, sizeof(index));
	attribute(IFLA_NET_NS_FD, &netns, sizeof(netns));
	name_attribute(name);
	struct rtattr *about = open_nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_KIND, "macvlan", strlen("macvlan"));
	struct rtattr *data = open_nest(IFLA_INFO_DATA);
	attribute(IFLA_MACVLAN_MODE, &mode, sizeof(mode));
	attribute(IFLA_MACVLAN_FLAGS, &flags, sizeof(flags));
	close_nest(data);
	close_nest(about);
	exchange(fd, 2);
}

static void move(int fd, int index, int netns, const char *name, int up)
{
	struct ifinfomsg *info = set_link(index);
	if (up)
		info->ifi_flags = info->ifi_change = IFF_UP;
	attribute(IFLA_NET_NS_FD, &netns, sizeof(netns));
	name_attribute(name);
	exchange(fd, 1);
}

/* --- IPAM */

static int is_program(const char *ipam)
{
	return ipam && *ipam == '/';
}

static pid_t start(const char *program, int *out)
{
	posix_spawn_file_actions_t actions;
	char *argv[] = {(char *)program, NULL};
	int ends[2];
	pid_t pid;
	check(pipe2(ends, O_CLOEXEC) == 0, "pipe2");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	check(posix_spawn(&pid, program, &actions, NULL, argv, environ) == 0, program);
	close(ends[1]);
	*out = ends[0];
	return pid;
}

static void finish(pid_t pid, int out, char *answer, size_t room)
{
	size_t size = 0;
	ssize_t got;
	int status;
	while ((got = read(out, answer + size, room - 1 - size)) > 0)
		size += got;
	answer[size] = 0;
	check(waitpid(pid, &status, 0) == pid, "waitpid");
	if (status) {
		fprintf(stderr, "floor: IPAM failed: %s\n", answer);
		exit(1);
	}
}

/* Copy the string value of a key in host-local's answer, which has one address. */
static void value_of(const char *answer, const char *key, char out[64])
{
	const char *at = strstr(answer, key);
	check(at != NULL && sscanf(at + strlen(key), "\": \"%63[^\"]", out) == 1, "IPAM's answer");
}

static void address(int fd, int index, char *cidr, const char *gateway)
{
	struct in_addr ip, broadcast, via;
	char *slash = strchr(cidr, '/');
	check(slash != NULL, "address");
	*slash = 0;
	int prefix = atoi(slash + 1);
	check(inet_pton(AF_INET, cidr, &ip) == 1 && inet_pton(AF_INET, gateway, &via) == 1, "inet_pton");
	broadcast.s_addr = ip.s_addr | htonl(0xffffffffu >> prefix);

	struct ifaddrmsg *addr = begin(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof(*addr));
	addr->ifa_family = AF_INET;
	addr->ifa_prefixlen = prefix;
	addr->ifa_index = index;
	attribute(IFA_LOCAL, &ip, sizeof(ip));
	attribute(IFA_ADDRESS, &ip, sizeof(ip));
	attribute(IFA_BROADCAST, &broadcast, sizeof(broadcast));
	struct rtmsg *route = begin(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof(*route));
	route->rtm_family = AF_INET;
	route->rtm_table = RT_TABLE_MAIN;
	route->rtm_protocol = RTPROT_BOOT;
	route->rtm_type = RTN_UNICAST;
	attribute(RTA_GATEWAY, &via, sizeof(via));
	attribute(RTA_OIF, &index, sizeof(index));
	exchange(fd, 2);
}

/* --- the two verbs */

static void attach(int netns, const char *host_name, const char *pod_name, const char *ipam, int moves)
{
	static char answer[1 << 14];
	char cidr[64], gateway[64];
	int out = -1;
	pid_t pid = is_program(ipam) ? start(ipam, &out) : 0;
	int host = rtnetlink();
	int index = index_of(host, host_name);
	if (moves)
		move(host, index, netns, pod_name, 1);
	else
		macvlan(host, index, netns, pod_name);
	if (pid) {
		finish(pid, out, answer, sizeof(answer));
		value_of(answer, "\"address", cidr);
		value_of(answer, "\"gateway", gateway);
	} else if (ipam) {
		check(sscanf(ipam, "%63[^,],%63s", cidr, gateway) == 2, "ADDRESS/LENGTH,GATEWAY");
	}
	if (ipam) {
		int pod = rtnetlink_in(netns);
		address(pod, moves ? index : index_of(pod, pod_name), cidr, gateway);
	}
	printf("{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"%s\"}]}\n", pod_name);
}

static void add(int netns, const char *host_name, const char *pod_name, const char *ipam)
{
	attach(netns, host_name, pod_name, ipam, 1);
}

static void add_macvlan(int netns, const char *host_name, const char *pod_name, const char *ipam)
{
	attach(netns, host_name, pod_name, ipam, 0);
}

static void del(int netns, const char *host_name, const char *pod_name, const char *ipam)
{
	static char answer[1 << 14];
	int out = -1;
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	check(home >= 0, "/proc/self/ns/net");
	int pod = rtnetlink_in(netns);
	check(setns(home, CLONE_NEWNET) == 0, "setns");
	int index = index_of(pod, pod_name);
	set_link(index)->ifi_change = IFF_UP;
	exchange(pod, 1);
	pid_t pid = is_program(ipam) ? start(ipam, &out) : 0;
	move(pod, index, home, host_name, 0);
	if (pid)
		finish(pid, out, answer, sizeof(answer));
}

static void del_macvlan(int netns, const char *host_name, const char *pod_name, const char *ipam)
{
	static char answer[1 << 14];
	int out = -1;
	int host = rtnetlink();
	int index = index_of(host, host_name);
	int pod = rtnetlink_in(netns);
	int upper = index_of(pod, pod_name);
	struct ifinfomsg *info = begin(RTM_DELLINK, NLM_F_ACK, sizeof(*info));
	info->ifi_index = upper;
	exchange(pod, 1);
	pid_t pid = is_program(ipam) ? start(ipam, &out) : 0;
	set_link(index)->ifi_change = IFF_UP | IFF_NOARP;
	exchange(host, 1);
	if (pid)
		finish(pid, out, answer, sizeof(answer));
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: floor add|del|add-macvlan|del-macvlan NETNS-PATH HOST-NAME POD-NAME [IPAM]\n");
		return 2;
	}
	int netns = open(argv[2], O_RDONLY | O_CLOEXEC);
	check(netns >= 0, argv[2]);
	const char *ipam = argc > 5 ? argv[5] : NULL;
	if (strstr(argv[1], "-macvlan"))
		(strncmp(argv[1], "add", 3) ? del_macvlan : add_macvlan)(netns, argv[3], argv[4], ipam);
	else
		(strcmp(argv[1], "add") ? del : add)(netns, argv[3], argv[4], ipam);
	return 0;
}
