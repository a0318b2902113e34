/*
 * Continue a saved interpreter: look whether the image fits, map its pieces where they were, load the registers.
 *
 * Up to the last step nothing is lost where something does not fit: execve(2) does away with whatever was mapped.
 * After that step this program's C library must not be used, for the thread register is the other's.
 */
#define _GNU_SOURCE
#include "image.h"

#if defined(__x86_64__)
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE /* since Linux 4.17; an older one takes the address for a hint */
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define ARCH_SET_FS 0x1002 /* asm/prctl.h; musl comes without the kernel's headers */
#define MOST_HEAD (4u << 20)
#define BOOT_PATH "/proc/sys/kernel/random/boot_id"

/* An image that is open, and its tables. */
struct image {
    int fd;
    uint64_t size;
    const struct image_head *head;
    const struct image_file *files;
    const struct image_piece *pieces;
    const char *strings;
    uint64_t strings_size;
};

/* --- is it one, and whole? */

/* Open what only its owner, who is us, can have written; return -1 for anything else. */
static int open_own(const char *path, uint64_t *size)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return -1;
    if (fstat(fd, &about) || !S_ISREG(about.st_mode) || about.st_uid != geteuid() || about.st_mode & 077) {
        close(fd);
        return -1;
    }
    *size = (uint64_t)about.st_size;
    return fd;
}

/* FNV-1a, a word at a time. */
static uint64_t sum_of(const uint64_t *words, size_t count)
{
    uint64_t sum = 0xcbf29ce484222325u;

    while (count--)
        sum = (sum ^ *words++) * 0x100000001b3u;
    return sum;
}

static int has_room(const struct image *image)
{
    const struct image_head *head = image->head;
    uint64_t tables = sizeof *head + head->files * (uint64_t)sizeof *image->files +
                      head->pieces * (uint64_t)sizeof *image->pieces;

    return head->files < 1u << 16 && head->pieces < 1u << 16 && tables + head->words < head->head_size;
}

/* Return whether the head is whole and of this format; leave where the tables are. */
static int has_tables(struct image *image)
{
    const struct image_head *head = image->head;
    const size_t summed = offsetof(struct image_head, head_size);

    if (memcmp(head->magic, IMAGE_MAGIC, sizeof head->magic) || head->file_size != image->size ||
        head->head_size > MOST_HEAD || head->head_size > image->size || head->head_size % IMAGE_PAGE ||
        head->head_size < sizeof *head || !has_room(image))
        return 0;
    if (sum_of((const uint64_t *)((const char *)head + summed), (head->head_size - summed) / 8) != head->sum)
        return 0;
    image->files = (const struct image_file *)(head + 1);
    image->pieces = (const struct image_piece *)(image->files + head->files);
    image->strings = (const char *)(image->pieces + head->pieces);
    image->strings_size = head->head_size - (uint64_t)(image->strings - (const char *)head);
    if (image->strings[image->strings_size - 1])
        return 0;
    return 1;
}

static int map_head(struct image *image)
{
    uint64_t size = image->size < MOST_HEAD ? image->size : MOST_HEAD;
    void *start;

    if (size < IMAGE_PAGE)
        return 0;
    start = mmap(NULL, size, PROT_READ, MAP_PRIVATE, image->fd, 0);
    if (start == MAP_FAILED)
        return 0;
    image->head = start;
    return has_tables(image);
}

/* --- does it fit? */

static int is_of_this_boot(const struct image_head *head)
{
    char boot[BOOT_ID];
    int fd = open(BOOT_PATH, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? -1 : read(fd, boot, sizeof boot);

    if (fd >= 0)
        close(fd);
    return count == BOOT_ID && !memcmp(boot, head->boot, BOOT_ID);
}

static int is_of_this_cpu(const struct image_head *head)
{
    uint32_t cpu[CPU_FACTS];

    image_cpu(cpu);
    return !memcmp(cpu, head->cpu, sizeof cpu);
}

static int is_for(const struct image *image, const struct image_wish *wish)
{
    return image->head->words == wish->words_size && !memcmp(image->strings, wish->words, wish->words_size);
}

static int is_same(const struct image_file *file, const struct stat *now)
{
    return file->dev == now->st_dev && file->ino == now->st_ino && file->size == (uint64_t)now->st_size &&
           file->mtime_ns == (uint64_t)now->st_mtim.tv_sec * 1000000000u + (uint64_t)now->st_mtim.tv_nsec;
}

static const char *path_of(const struct image *image, const struct image_file *file)
{
    return file->path < image->strings_size ? image->strings + file->path : "";
}

/* Return whether all that it was made of is still what it was. */
static int is_current(const struct image *image)
{
    struct stat now;

    for (uint32_t i = 0; i < image->head->files; i++)
        if (stat(path_of(image, &image->files[i]), &now) || !is_same(&image->files[i], &now))
            return 0;
    return 1;
}

/* --- into memory */

static int maps(const struct image_piece *piece, uint32_t protection, uint32_t flags, int fd)
{
    void *start = (void *)piece->start;

    flags |= MAP_FIXED_NOREPLACE;
    return mmap(start, piece->size, (int)protection, (int)flags, fd, (off_t)piece->offset) == start;
}

/* What may be executed is copied: file systems for what runs are often mounted noexec. */
static int copies(const struct image *image, const struct image_piece *piece)
{
    return maps(piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1) &&
           pread(image->fd, (void *)piece->start, piece->size, (off_t)piece->offset) == (ssize_t)piece->size &&
           !mprotect((void *)piece->start, piece->size, (int)piece->protection);
}

/* Map some of a file; `open_file` is the one that the piece before this was of. */
static int maps_file(const struct image *image, const struct image_piece *piece, int *fd, uint32_t *open_file)
{
    struct stat now;

    if (piece->file >= image->head->files)
        return 0;
    if (*fd < 0 || *open_file != piece->file) {
        if (*fd >= 0)
            close(*fd);
        *open_file = piece->file;
        *fd = open(path_of(image, &image->files[piece->file]), O_RDONLY | O_CLOEXEC);
        if (*fd < 0 || fstat(*fd, &now) || !is_same(&image->files[piece->file], &now))
            return 0;
    }
    return maps(piece, piece->protection, piece->flags, *fd);
}

static int maps_pieces(const struct image *image)
{
    uint32_t open_file = 0;
    int fd = -1, done = 1;

    for (uint32_t i = 0; done && i < image->head->pieces; i++) {
        const struct image_piece *piece = &image->pieces[i];

        switch (piece->kind) {
        case PIECE_ZERO:
            done = maps(piece, piece->protection, piece->flags | MAP_ANONYMOUS, -1);
            break;
        case PIECE_SAVED:
            done = maps(piece, piece->protection, piece->flags, image->fd);
            break;
        case PIECE_FILE:
            done = maps_file(image, piece, &fd, &open_file);
            break;
        case PIECE_COPY:
            done = copies(image, piece);
            break;
        default:
            done = 0;
        }
    }
    if (fd >= 0)
        close(fd);
    return done;
}

/* Load the registers; return only if the kernel refuses the first of them. No C library from the syscall on. */
static void resume(struct parked *parked)
{
    long refused;

    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[parked], %%rdi\n\t"
                     "ldmxcsr %c[mxcsr](%%rdi)\n\t"
                     "fldcw %c[fcw](%%rdi)\n\t"
                     "mov %c[rbx](%%rdi), %%rbx\n\t"
                     "mov %c[rbp](%%rdi), %%rbp\n\t"
                     "mov %c[r12](%%rdi), %%r12\n\t"
                     "mov %c[r13](%%rdi), %%r13\n\t"
                     "mov %c[r14](%%rdi), %%r14\n\t"
                     "mov %c[r15](%%rdi), %%r15\n\t"
                     "mov %c[rsp](%%rdi), %%rsp\n\t"
                     "mov $1, %%eax\n\t" /* what park_save returns the second time */
                     "jmp *%c[rip](%%rdi)\n"
                     "1:"
                     : "=a"(refused)
                     : "a"((long)SYS_arch_prctl), "D"((long)ARCH_SET_FS), "S"(parked->fs), [parked] "r"(parked),
                       [mxcsr] "i"(offsetof(struct parked, mxcsr)), [fcw] "i"(offsetof(struct parked, fcw)),
                       [rbx] "i"(offsetof(struct parked, rbx)), [rbp] "i"(offsetof(struct parked, rbp)),
                       [r12] "i"(offsetof(struct parked, r12)), [r13] "i"(offsetof(struct parked, r13)),
                       [r14] "i"(offsetof(struct parked, r14)), [r15] "i"(offsetof(struct parked, r15)),
                       [rsp] "i"(offsetof(struct parked, rsp)), [rip] "i"(offsetof(struct parked, rip))
                     : "rcx", "r11", "memory");
}

enum image_answer image_continue(const struct image_wish *wish)
{
    struct image image = { .fd = -1 };
    struct parked *parked;

    image.fd = open_own(wish->path, &image.size);
    if (image.fd < 0 || !map_head(&image) || !is_for(&image, wish) || !is_of_this_boot(image.head) ||
        !is_of_this_cpu(image.head) || !is_current(&image))
        return IMAGE_STALE;
    if ((uint32_t)personality(0xffffffff) != image.head->personality || !maps_pieces(&image))
        return IMAGE_UNFIT;
    close(image.fd);
    parked = (struct parked *)image.head->parked;
    parked->env = (uint64_t)wish->env;
    parked->argv = (uint64_t)wish->argv;
    munmap((void *)image.head, image.size < MOST_HEAD ? image.size : MOST_HEAD);
    resume(parked);
    return IMAGE_UNFIT;
}

#else

enum image_answer image_continue(const struct image_wish *wish)
{
    (void)wish;
    return IMAGE_UNFIT;
}

#endif
