/*
 * Stand still to be saved, and know oneself again when continued by client/image.c. For _park.pyx.
 *
 * Only with glibc on x86-64: what else a process has besides its memory depends on both.
 */
#include "client/image.h"

#define PARK_FAILED -1

#if defined(__x86_64__) && defined(__GLIBC__)
#include <asm/prctl.h>
#include <dlfcn.h>
#include <errno.h>
#include <linux/prctl.h>
#include <signal.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PARK_SUPPORTED 1
#define PARK_SIGNALS 64
#ifndef ARCH_SHSTK_STATUS /* since Linux 6.6 */
#define ARCH_SHSTK_STATUS 0x5005
#endif

/* The kernel's struct sigaction. */
struct park_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

extern void *__curbrk; /* glibc's: where the heap ends */
extern char **environ;

static struct parked parked;
static struct park_action park_actions[PARK_SIGNALS + 1];
static int *park_tid;
static void *park_robust;
static size_t park_robust_size;

/* As setjmp: 0, and 1 when continued. */
int park_save(struct parked *state) __attribute__((returns_twice, visibility("hidden")));
__asm__(".text\n"
        ".hidden park_save\n"
        ".globl park_save\n"
        ".type park_save, @function\n"
        "park_save:\n"
        "    mov %rbx, 0(%rdi)\n"
        "    mov %rbp, 8(%rdi)\n"
        "    mov %r12, 16(%rdi)\n"
        "    mov %r13, 24(%rdi)\n"
        "    mov %r14, 32(%rdi)\n"
        "    mov %r15, 40(%rdi)\n"
        "    lea 8(%rsp), %rax\n"
        "    mov %rax, 48(%rdi)\n"
        "    mov (%rsp), %rax\n"
        "    mov %rax, 56(%rdi)\n"
        "    mov %fs:0, %rax\n" /* the thread's block names itself (x86-64 psABI, TLS) */
        "    mov %rax, 64(%rdi)\n"
        "    stmxcsr 72(%rdi)\n"
        "    fnstcw 76(%rdi)\n"
        "    xor %eax, %eax\n"
        "    ret\n"
        ".size park_save, . - park_save\n");

/* Remember what the kernel knows of us. */
static void park_remember(void)
{
    for (int number = 1; number <= PARK_SIGNALS; number++)
        syscall(SYS_rt_sigaction, number, NULL, &park_actions[number], sizeof(uint64_t));
    if (prctl(PR_GET_TID_ADDRESS, &park_tid))
        park_tid = NULL;
    if (syscall(SYS_get_robust_list, 0, &park_robust, &park_robust_size))
        park_robust = NULL;
}

/* Handle or ignore what the interpreter does, but let what our caller ignores be ignored, as it does. */
static void park_restore_signals(void)
{
    struct park_action now;

    for (int number = 1; number <= PARK_SIGNALS; number++)
        if (park_actions[number].handler != (void *)SIG_DFL &&
            !syscall(SYS_rt_sigaction, number, NULL, &now, sizeof(uint64_t)) && now.handler == (void *)SIG_DFL)
            syscall(SYS_rt_sigaction, number, &park_actions[number], NULL, sizeof(uint64_t));
}

/*
 * glibc's rseq area (since 2.35) has the core that the saved thread ran on. It is not registered for this one, and
 * says so, as it does where the kernel has no rseq; sched_getcpu(3) asks the kernel then.
 */
static void park_forget_core(void)
{
    const ptrdiff_t *offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
    const unsigned *size = dlsym(RTLD_DEFAULT, "__rseq_size");

    if (offset && size && *size)
        ((volatile int32_t *)(parked.fs + (uint64_t)*offset))[1] = -2; /* RSEQ_CPU_ID_REGISTRATION_FAILED */
}

/* Tell the C library what it is in now. */
static void park_awake(void)
{
    /* This process' heap is elsewhere: every extension must fail, and malloc(3) take mmap(2) instead. */
    __curbrk = (void *)-(intptr_t)IMAGE_PAGE;
    environ = (char **)parked.env;
    if (park_tid)
        *park_tid = (int)syscall(SYS_set_tid_address, park_tid);
    if (park_robust)
        syscall(SYS_set_robust_list, park_robust, park_robust_size);
    park_forget_core();
    park_restore_signals();
}

static int park_has_shadow_stack(void)
{
    unsigned long features = 0;

    return !syscall(SYS_arch_prctl, ARCH_SHSTK_STATUS, &features) && features;
}

/*
 * Write our address to `tell`, and wait until `wait` has something to read. Return 0 then, 1 in a process that
 * continues this one from here, PARK_FAILED with errno.
 */
static __attribute__((noinline)) int park(int tell, int wait)
{
    uint64_t address = (uint64_t)&parked;
    char byte;

    if (park_has_shadow_stack()) {
        errno = ENOTSUP;
        return PARK_FAILED;
    }
    park_remember();
    if (park_save(&parked)) {
        park_awake();
        return 1;
    }
    if (write(tell, &address, sizeof address) != sizeof address)
        return PARK_FAILED;
    return read(wait, &byte, 1) < 0 ? PARK_FAILED : 0;
}

static uint32_t park_personality(void)
{
    return (uint32_t)personality(0xffffffff);
}

static char **park_environ(void)
{
    return environ;
}

static char **park_arguments(void)
{
    return (char **)parked.argv;
}

#else

#include <errno.h>

#define PARK_SUPPORTED 0

static int park(int tell, int wait)
{
    (void)tell, (void)wait;
    errno = ENOTSUP;
    return PARK_FAILED;
}

static void image_cpu(uint32_t facts[CPU_FACTS])
{
    for (int i = 0; i < CPU_FACTS; i++)
        facts[i] = 0;
}

static uint32_t park_personality(void)
{
    return 0;
}

static char **park_environ(void)
{
    return NULL;
}

static char **park_arguments(void)
{
    return NULL;
}

#endif
