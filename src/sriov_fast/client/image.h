/*
 * The image of a started interpreter: the file's layout, and how a client continues it. README.md beside this file
 * has the whole story; src/sriov_fast/image/layout.py writes what is described here.
 *
 * The file is head, files, pieces, strings, then pages. It is of this machine and this boot: integers and structures
 * are the machine's own.
 */
#ifndef SRIOV_FAST_IMAGE_H
#define SRIOV_FAST_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#define IMAGE_MAGIC "SRFIMG01"
#define IMAGE_PAGE 4096u
#define BOOT_ID 36
#define CPU_FACTS 16

/* Where the saved process stands, and what the one that continues it is told. It lies in the saved memory. */
struct parked {
    uint64_t rbx, rbp, r12, r13, r14, r15, rsp, rip;
    uint64_t fs;
    uint32_t mxcsr;
    uint32_t fcw;
    uint64_t env; /* from here on written by the client */
    uint64_t argv;
};

struct image_head {
    char magic[8];
    uint64_t sum;       /* of all that follows, up to head_size */
    uint64_t head_size; /* of this, files, pieces and strings */
    uint64_t file_size;
    uint64_t parked; /* address of struct parked */
    uint32_t cpu[CPU_FACTS];
    uint32_t personality;
    uint32_t files, pieces;
    uint32_t words; /* bytes; the first of the strings: the words behind the executable that it stands for */
    char boot[BOOT_ID + 4];
};

/* A file that it was made of. If it is another one now, the image is stale. */
struct image_file {
    uint64_t dev, ino, mtime_ns, size;
    uint64_t path; /* among the strings, with its NUL */
};

enum piece_kind { PIECE_ZERO, PIECE_SAVED, PIECE_FILE, PIECE_COPY };

/* Some of its memory: zeros, pages of the image, of a file, or of the image in memory of its own. */
struct image_piece {
    uint64_t start, size;
    uint64_t offset; /* in the image or the file */
    uint32_t kind;
    uint32_t protection;
    uint32_t flags; /* MAP_PRIVATE or MAP_SHARED, and what else mmap(2) knows */
    uint32_t file;
};

enum image_answer {
    IMAGE_UNFIT, /* not for this process; others may use it */
    IMAGE_STALE, /* there is none, or it is to be made anew */
};

/* What to continue: the image at `path`, if it stands for `words`, with that environment. */
struct image_wish {
    const char *path;
    const char *words;
    size_t words_size;
    char **argv;
    char **env;
};

/* Become the saved process; return only where that cannot be. Everything may still be executed then. */
enum image_answer image_continue(const struct image_wish *wish);

#if defined(__x86_64__)
#include <cpuid.h>

/* Say what the C library and the compiler's start-up code may have chosen their functions by. */
static inline void image_cpu(uint32_t facts[CPU_FACTS])
{
    uint32_t a = 0, b = 0, c = 0, d = 0, low = 0, high = 0;

    __builtin_memset(facts, 0, CPU_FACTS * sizeof *facts);
    __cpuid(0, facts[0], facts[1], facts[2], facts[3]);
    __cpuid(1, facts[4], b, facts[5], facts[6]); /* b has the number of the core */
    if (facts[0] >= 7) {
        __cpuid_count(7, 0, a, facts[7], facts[8], facts[9]);
        __cpuid_count(7, 1, facts[10], b, c, d);
    }
    if (facts[0] >= 13)
        __cpuid_count(13, 0, facts[11], facts[12], c, d); /* b: the room that XSAVE needs */
    __cpuid(0x80000001u, a, b, facts[13], facts[14]);
    if (facts[5] & bit_OSXSAVE)
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    facts[15] = low ^ high;
}
#endif

#endif
