/*
 * The baseline of a VF scan: the system calls of the compiled scan, with minimal C code around them.
 *
 * Built as a shared object by bench_scan.py. scan() returns the number of VFs, or -1 with errno set.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 512
#define LISTING 16384

struct vf {
	int index;
	int numa;
	char pci[32];
	char driver[64];
	char netdev[64];
};

struct dirent64_raw {
	unsigned long long ino;
	long long off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

typedef void each(const char *name, void *to);

static void list(int fd, each *call, void *to)
{
	char buffer[LISTING];
	long size, i;

	while ((size = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
		for (i = 0; i < size; i += ((struct dirent64_raw *)(buffer + i))->reclen)
			call(((struct dirent64_raw *)(buffer + i))->name, to);
}

static int link_name(int at, const char *path, char *name, size_t room)
{
	char target[4096], *slash, *last = target;
	ssize_t length = readlinkat(at, path, target, sizeof target - 1);

	if (length < 0)
		return -1;
	target[length] = 0;
	slash = memrchr(target, '/', length);
	if (slash)
		last = slash + 1;
	length -= last - target;
	if ((size_t)length >= room)
		return -1;
	memcpy(name, last, length + 1);
	return 0;
}

struct found {
	int fd;
	int count;
	struct vf *vfs;
	struct vf *by_pci[MOST];
	const char *driver;
};

static void take_index(const char *name, void *to)
{
	struct found *found = to;

	if (strncmp(name, "virtfn", 6) == 0 && found->count < MOST)
		found->vfs[found->count++].index = atoi(name + 6);
}

static int by_index(const void *a, const void *b)
{
	return ((const struct vf *)a)->index - ((const struct vf *)b)->index;
}

static int by_pci(const void *a, const void *b)
{
	return strcmp((*(struct vf *const *)a)->pci, (*(struct vf *const *)b)->pci);
}

static int is_pci(const void *pci, const void *vf)
{
	return strcmp(pci, (*(struct vf *const *)vf)->pci);
}

static struct vf *find(struct found *found, const char *pci)
{
	struct vf **hit = bsearch(pci, found->by_pci, found->count, sizeof *found->by_pci, is_pci);

	return hit ? *hit : NULL;
}

static void take_driver(const char *name, void *to)
{
	struct found *found = to;
	struct vf *vf = find(found, name);

	if (vf)
		strcpy(vf->driver, found->driver);
}

static void take_netdev(const char *name, void *to)
{
	struct found *found = to;
	char target[4096], *pci, *net;
	struct vf *vf;
	ssize_t length;

	if (name[0] == '.')
		return;
	length = readlinkat(found->fd, name, target, sizeof target - 1);
	if (length < 0)
		return;
	target[length] = 0;
	net = memrchr(target, '/', length);
	if (!net || net - target < 5 || memcmp(net - 4, "/net", 4) != 0)
		return;
	net[-4] = 0;
	pci = memrchr(target, '/', net - 4 - target);
	vf = pci ? find(found, pci + 1) : NULL;
	if (vf && strlen(name) < sizeof vf->netdev)
		strcpy(vf->netdev, name);
}

static int numa_node(int at)
{
	char text[32] = "-1";
	int fd = openat(at, "numa_node", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, text, sizeof text - 1) < 0)
			strcpy(text, "-1");
		close(fd);
	}
	return atoi(text);
}

int scan(const char *root, const char *pf, struct vf *vfs)
{
	struct found found = { .vfs = vfs };
	char path[4096];
	int i, numa, device, fd;

	snprintf(path, sizeof path, "%s/class/net/%s/device", root, pf);
	device = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (device < 0)
		return -1;
	list(device, take_index, &found);
	qsort(vfs, found.count, sizeof *vfs, by_index);
	numa = numa_node(device);
	for (i = 0; i < found.count; i++) {
		snprintf(path, sizeof path, "virtfn%d", vfs[i].index);
		link_name(device, path, vfs[i].pci, sizeof vfs[i].pci);
		vfs[i].numa = numa;
		vfs[i].driver[0] = vfs[i].netdev[0] = 0;
		found.by_pci[i] = &vfs[i];
	}
	qsort(found.by_pci, found.count, sizeof *found.by_pci, by_pci);
	for (i = 0; i < found.count; i++) {
		if (vfs[i].driver[0])
			continue;
		snprintf(path, sizeof path, "virtfn%d/driver", vfs[i].index);
		if (link_name(device, path, vfs[i].driver, sizeof vfs[i].driver) < 0)
			continue;
		found.driver = vfs[i].driver;
		fd = openat(device, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0) {
			list(fd, take_driver, &found);
			close(fd);
		}
	}
	snprintf(path, sizeof path, "%s/class/net", root);
	found.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (found.fd >= 0) {
		list(found.fd, take_netdev, &found);
		close(found.fd);
	}
	close(device);
	return found.count;
}
