/*
 * sriov, as container runtimes execute it: pass the call to the resident server, and its reply to the caller. Without
 * a server, or without a complete reply, this process executes the interpreter with the same stdin and environment,
 * and the caller sees no difference.
 *
 * Its run time is part of each CNI call, so it is one static file without stdio or locale. The arguments to execute are
 * at the end of the file itself (struct trailer), so that program and settings are replaced in one step. README.md in
 * this directory has the protocol.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>


#ifndef MFD_NOEXEC_SEAL /* since Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define MAGIC 0x31465253u /* "SRF1", little endian */
#define TRAILER_MAGIC "SRFARGV1"
#define RUN_DIRECTORY "/run/sriov-fast"
#define SOCKET_NAME "/sriov.sock"
/* Below a directory that pods mount which execute plugins themselves; they do not see /run/sriov-fast. */
#define SECOND_SOCKET "/var/lib/cni/sriov-fast/sriov.sock"
#define WAIT "120" /* seconds */
#define RETURN_WAIT 30000 /* milliseconds until a server that is replaced serves again */
#define ANSWER_WAIT 500   /* milliseconds that must be left to ask it */
/* More than the plugin accepts: the plugin reports the error. */
#define MOST_STDIN ((16u << 20) + (64u << 10))
#define MOST_REPLY (64u << 20)
/* CNI's codes (SPEC, "Error"). */
#define TRY_AGAIN "11"
#define IO_FAILURE "5"
#define NOT_AVAILABLE "50"
#define LONG_BITS (8 * sizeof(long))

enum { HAS_NETNS = 1, HAS_STDERR = 2 };
enum { CPU_SHIFT = 16 };
enum { MOST_CPUS = 8192 }; /* that Linux can be built for */
enum { TOKEN = 16 };

struct request {
    uint32_t magic;
    uint32_t flags;
    uint32_t env_len;
    uint32_t stdin_len;
    unsigned char token[TOKEN];
};

struct reply {
    uint32_t magic;
    int32_t status;
    uint32_t length;
    uint32_t reserved;
};

/* The last bytes of the executable; before them, `length` bytes of strings, each with its NUL. */
struct trailer {
    uint32_t length;
    char magic[8];
};

/* CPUs, as sched_setaffinity(2) takes them; `size` in bytes, 0 for none. */
struct cpus {
    size_t size;
    unsigned long bits[MOST_CPUS / LONG_BITS];
};

/* One call: the request lies in one piece, as it is sent; stdin is its last part. */
struct call {
    char **argv;
    struct request *request;
    char *in;
    size_t size;
    int has_stdin; /* stdin was read, so the plugin needs it again */
    int was_sent;  /* at least in part: the server may have begun */
    const char *wait;
    int64_t deadline; /* milliseconds of CLOCK_MONOTONIC */
    int64_t patience; /* milliseconds to wait for a server that is replaced */
    struct sockaddr_un server;
    const char *interpreter; /* that could not be executed, NULL if this file names none */
    int fault;               /* the errno of that */
    int log;          /* the read end of the server's stderr, -1 for none */
    int log_end;      /* its write end; these three are -1 before they are opened */
    int socket;
    int netns;
    struct cpus ours; /* the CPUs to run on again, if the process is pinned to one */
    struct sigaction pipe_action;
};

/* BROKEN: the server may be at work, and its reply cannot be read; errno says why. */
enum outcome { ANSWERED, NO_ANSWER, TOO_LATE, BROKEN };

/* --- messages */

enum { MOST_WORDS = 512, MOST_MESSAGE = 1536 }; /* bytes; a message names a program and two sockets */

struct text {
    size_t size;
    char bytes[2048];
};

static void append(struct text *text, const char *words)
{
    while (*words && text->size < sizeof text->bytes - 1) /* it stays a C string */
        text->bytes[text->size++] = *words++;
}

/* Append at most `most` bytes to a JSON string; characters that would need escapes become question marks. */
static void append_plain(struct text *text, const char *words, size_t most)
{
    char one[2] = "";

    for (; *words && most; words++, most--) {
        one[0] = *words < ' ' || *words > '~' || *words == '"' || *words == '\\' ? '?' : *words;
        append(text, one);
    }
}

/* Sleep a millisecond after a poll(2) that failed (no memory), so that retrying does not use a whole CPU. */
static void pause_briefly(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* Wait until a non-blocking file is ready. */
static void wait_for(int fd, short events)
{
    if (poll(&(struct pollfd){ .fd = fd, .events = events }, 1, -1) < 0 && errno != EINTR)
        pause_briefly();
}

/* Write all bytes, also to a non-blocking file; return 0, or -1 with errno. */
static int put(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t done = write(fd, bytes, size);

        if (done >= 0) {
            bytes += done;
            size -= (size_t)done;
        } else if (errno == EAGAIN) {
            wait_for(fd, POLLOUT);
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return 0;
}

static void say(const char *what, int number)
{
    struct text line = { 0 };

    append(&line, "sriov-fast: ");
    append_plain(&line, what, MOST_WORDS);
    append(&line, ": ");
    append(&line, strerror(number));
    append(&line, "\n");
    put(STDERR_FILENO, line.bytes, line.size);
}

/* --- the version of an error */

static const char *const versions[] = { "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0" };
#define OLDEST versions[0] /* the version of a configuration that names none */
#define NEWEST versions[sizeof versions / sizeof *versions - 1]

static const char *skip_blank(const char *at, const char *end)
{
    while (at < end && strchr(" \t\r\n", *at) && *at)
        at++;
    return at;
}

/* Return the closing quote of the string with its opening quote at `at`, or `end`. */
static const char *closing_quote(const char *at, const char *end)
{
    for (at++; at < end && *at != '"'; at++)
        if (*at == '\\')
            at++;
    return at < end ? at : end;
}

static const char *known_version(const char *at, const char *end)
{
    if (end - at >= 4 && !memcmp(at, "null", 4))
        return OLDEST;
    if (at < end && *at == '"') {
        size_t size = (size_t)(closing_quote(at, end) - at) - 1;

        at++;
        if (!size)
            return OLDEST;
        for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
            if (strlen(versions[i]) == size && !memcmp(versions[i], at, size))
                return versions[i];
    }
    return NEWEST;
}

/* Return the configuration's "cniVersion"; the newest one for an unknown version or invalid JSON. */
static const char *spoken_version(const char *at, size_t size)
{
    static const char key[] = "\"cniVersion\"";
    const char *end = at + size;
    const char *found = OLDEST;
    int depth = 0;

    at = skip_blank(at, end);
    if (at == end || *at != '{')
        return NEWEST;
    for (; at < end; at++) {
        if (*at == '"') {
            const char *close = closing_quote(at, end);
            const char *next = close < end ? skip_blank(close + 1, end) : end;

            if (depth == 1 && next < end && *next == ':' && (size_t)(close - at) + 1 == sizeof key - 1 &&
                !strncasecmp(at, key, sizeof key - 1)) /* as Go reads keys */
                found = known_version(skip_blank(next + 1, end), end);
            at = close;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']') && !--depth) {
            return skip_blank(at + 1, end) == end ? found : NEWEST;
        }
    }
    return NEWEST;
}

/* Print a CNI error and exit. */
static _Noreturn void fail(const struct call *call, const char *code, const struct text *msg, const char *details)
{
    struct text json = { 0 };

    append(&json, "{\n    \"cniVersion\": \"");
    append(&json, call->has_stdin ? spoken_version(call->in, call->request->stdin_len) : NEWEST);
    append(&json, "\",\n    \"code\": ");
    append(&json, code);
    append(&json, ",\n    \"msg\": \"");
    append_plain(&json, msg->bytes, MOST_MESSAGE);
    append(&json, "\",\n    \"details\": \"");
    append(&json, details);
    append(&json, "\"\n}\n");
    put(STDOUT_FILENO, json.bytes, json.size);
    _exit(1);
}

static _Noreturn void fail_errno(const struct call *call, const char *code, const char *what, const char *details)
{
    struct text msg = { 0 };
    int number = errno;

    append(&msg, what);
    append(&msg, ": ");
    append(&msg, strerror(number));
    fail(call, code, &msg, details);
}

/* --- memory and time */

/* Reserve address space; untouched pages cost nothing. NULL on error. */
static void *reserve(size_t size)
{
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (start == MAP_FAILED)
        return NULL;
    madvise(start, size, MADV_NOHUGEPAGE); /* a huge page would be cleared at the first touch */
    return start;
}

static int64_t now(void)
{
    struct timespec time = { 0 };

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Return the milliseconds of a number of seconds such as "0.25", 0 if it is no number. At most a day. */
static int64_t milliseconds(const char *seconds)
{
    int64_t whole = 0, part = 0, unit = 1000;

    for (; *seconds >= '0' && *seconds <= '9'; seconds++)
        if (whole < 86400)
            whole = whole * 10 + (*seconds - '0');
    if (*seconds == '.')
        for (seconds++; *seconds >= '0' && *seconds <= '9'; seconds++)
            part += (*seconds - '0') * (unit /= 10);
    if (*seconds)
        return 0;
    return whole < 86400 ? whole * 1000 + part : 86400 * 1000;
}

/* Return whether a read would return data. This process has the write end open, so there is no end of file. */
static int has_log(const struct call *call)
{
    struct pollfd file = { .fd = call->log, .events = POLLIN };

    return call->log >= 0 && poll(&file, 1, 0) > 0;
}

/* Copy the server's log to stderr, as far as it has come. */
static void relay_log(struct call *call)
{
    char bytes[4096];

    while (has_log(call)) {
        ssize_t count = read(call->log, bytes, sizeof bytes);

        if (count > 0)
            put(STDERR_FILENO, bytes, (size_t)count);
        else if (!count || errno != EINTR)
            call->log = -1; /* poll(2) would report it again and again */
    }
}

/* Wait until the socket is ready; return 0 after the deadline. */
static int ready(int fd, short events, struct call *call)
{
    for (;;) {
        struct pollfd files[2] = { { .fd = fd, .events = events }, { .fd = call->log, .events = POLLIN } };
        int64_t left = call->deadline - now();
        int count = left > 0 ? poll(files, 2, (int)left) : 0;

        if (!count)
            return 0;
        if (count < 0 && errno != EINTR) {
            pause_briefly();
            return 1;
        }
        if (count < 0)
            continue;
        if (files[1].revents)
            relay_log(call);
        if (files[0].revents)
            return 1;
    }
}

/* --- environment and files */

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);

    return value && *value ? value : otherwise;
}

static int is_verb(const char *verb)
{
    return !strcmp(setting("CNI_COMMAND", ""), verb);
}

/* Return whether CNI_PATH names a directory that only this process finds: the server's current directory is another. */
static int has_relative_path(void)
{
    for (const char *at = setting("CNI_PATH", NULL); at; at = strchr(at, ':')) {
        at += *at == ':';
        if (*at && !strchr("/:", *at))
            return 1;
    }
    return 0;
}

/* Return whether the three standard files are open. The plugin handles closed ones. */
static int has_standard_files(void)
{
    return fcntl(STDIN_FILENO, F_GETFD) >= 0 && fcntl(STDOUT_FILENO, F_GETFD) >= 0 &&
           fcntl(STDERR_FILENO, F_GETFD) >= 0;
}

/* --- the CPU */

/* Return the number of the current CPU plus one, 0 if it is unknown. */
static uint32_t this_cpu(void)
{
    unsigned int number;

    return syscall(SYS_getcpu, &number, NULL, NULL) || number >= UINT16_MAX ? 0 : number + 1;
}

/*
 * Pin this process to its CPU while a device is moved. Otherwise it would continue on an idle CPU after the reply and
 * queue RCU callbacks there, and the next move would wait for two CPUs.
 */
static uint32_t stay(struct cpus *ours)
{
    struct cpus here = { 0 };
    uint32_t number = this_cpu();
    long size = number && number <= MOST_CPUS ? syscall(SYS_sched_getaffinity, 0, sizeof ours->bits, ours->bits) : 0;

    if (size <= 0)
        return number;
    here.bits[(number - 1) / LONG_BITS] = 1UL << (number - 1) % LONG_BITS;
    if (!syscall(SYS_sched_setaffinity, 0, (size_t)size, here.bits))
        ours->size = (size_t)size;
    return number;
}

/* Unpin the process. */
static void roam(struct cpus *ours)
{
    if (ours->size)
        syscall(SYS_sched_setaffinity, 0, ours->size, ours->bits);
    ours->size = 0;
}

/* --- without a server */

/* The arguments at the end of this executable, each with its NUL. */
struct words {
    char *at;
    size_t size;
};

static int open_self(void)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    /* without /proc, by the path of the execve(2) */
    return fd < 0 ? open((const char *)getauxval(AT_EXECFN), O_RDONLY | O_CLOEXEC) : fd;
}

/* Read the arguments from the end of an executable; return 0, or -1 with errno. */
static int read_words(int fd, struct words *words)
{
    struct trailer trailer;
    struct stat about;
    off_t start;

    if (fstat(fd, &about))
        return -1;
    errno = ENOEXEC;
    start = about.st_size - (off_t)sizeof trailer;
    if (start < 0 || pread(fd, &trailer, sizeof trailer, start) != sizeof trailer ||
        memcmp(trailer.magic, TRAILER_MAGIC, sizeof trailer.magic) || !trailer.length || trailer.length > start)
        return -1;
    words->size = trailer.length;
    words->at = reserve(words->size);
    if (!words->at || pread(fd, words->at, words->size, start - trailer.length) != (ssize_t)words->size)
        return -1;
    return words->at[words->size - 1] ? -1 : 0;
}

/* Return the arguments of this executable as argv, followed by the caller's; NULL with errno. */
static char **plugin_argv(const struct call *call)
{
    int own = 0, count = 0, fd = open_self();
    struct words words;
    char **argv, *at;

    if (fd < 0 || read_words(fd, &words)) {
        close(fd);
        return NULL;
    }
    close(fd);
    while (call->argv[own])
        own++;
    argv = reserve((words.size + (size_t)own + 1) * sizeof *argv);
    if (!argv)
        return NULL;
    for (at = words.at; at < words.at + words.size; at += strlen(at) + 1)
        argv[count++] = at;
    memcpy(argv + count, call->argv, (size_t)own * sizeof *argv);
    return argv;
}

/* Add an entry to the environment; return 0, or -1 with errno. setenv(3) would link malloc(3). */
static int add_entry(char *entry)
{
    size_t count = 0;
    char **longer;

    while (environ[count])
        count++;
    longer = reserve((count + 2) * sizeof *longer);
    if (!longer)
        return -1;
    memcpy(longer, environ, count * sizeof *environ);
    longer[count] = entry;
    environ = longer;
    return 0;
}

/* Make stdin readable again from its first byte; return 0, or -1 with errno. */
static int restore_stdin(const struct call *call)
{
    size_t done = 0, size = call->request->stdin_len;
    int fd = memfd_create("stdin", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("stdin", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    while (done < size) {
        ssize_t count = pwrite(fd, call->in + done, size - done, (off_t)done);

        if (!count || (count < 0 && errno != EINTR))
            return -1;
        if (count > 0)
            done += (size_t)count;
    }
    return dup2(fd, STDIN_FILENO) < 0 ? -1 : 0;
}

/* Put the token of the call into the environment: the plugin then recognizes an attachment of the lost reply. */
static void name_the_call(const struct call *call)
{
    static char entry[] = "SRIOV_FAST_TOKEN=0123456789abcdef0123456789abcdef";
    char *at = entry + sizeof "SRIOV_FAST_TOKEN=" - 1;

    for (int i = 0; i < TOKEN; i++) {
        *at++ = "0123456789abcdef"[call->request->token[i] >> 4];
        *at++ = "0123456789abcdef"[call->request->token[i] & 15];
    }
    if (add_entry(entry))
        fail_errno(call, IO_FAILURE, "no memory", "");
}

/* A write to a pipe without a reader shall fail and not end this process. */
static void ignore_pipes(struct sigaction *before)
{
    sigaction(SIGPIPE, &(struct sigaction){ .sa_handler = SIG_IGN }, before);
}

/* Execute the plugin in place of this process; return only if that is impossible, and note why. */
static void in_process(struct call *call)
{
    char **argv;

    roam(&call->ours);
    if (call->has_stdin && restore_stdin(call))
        fail_errno(call, IO_FAILURE, "stdin cannot be handed on", "see whether the machine has memory left");
    argv = plugin_argv(call);
    if (argv) {
        unsetenv("SRIOV_FAST_TOKEN"); /* of another call */
        if (call->was_sent)
            name_the_call(call);
        sigaction(SIGPIPE, &call->pipe_action, NULL);
        execve(argv[0], argv, environ);
        call->interpreter = argv[0];
    }
    call->fault = errno;
    ignore_pipes(NULL);
}

/* --- the request */

/* Return the path of the n-th socket to try, NULL after the last one. */
static const char *socket_path(int number)
{
    static struct text path;
    const char *only = setting("SRIOV_FAST_SOCKET", NULL), *run = setting("SRIOV_FAST_RUN", NULL);

    if (number && (number > 1 || only || run))
        return NULL;
    if (number)
        return SECOND_SOCKET;
    if (only)
        return strcmp(only, "none") ? only : NULL;
    path = (struct text){ 0 };
    append(&path, run ? run : RUN_DIRECTORY);
    append(&path, SOCKET_NAME);
    return path.bytes;
}

/* Return whether there is a socket to connect to, with its address. */
static int find_server(struct sockaddr_un *address)
{
    const char *path;

    address->sun_family = AF_UNIX;
    for (int number = 0; (path = socket_path(number)); number++)
        if (strlen(path) < sizeof address->sun_path && !access(path, F_OK)) {
            strcpy(address->sun_path, path);
            return 1;
        }
    return 0;
}

/* Say which sockets were tried, and which of them do not exist. */
static void append_sockets(struct text *text)
{
    const char *path;

    if (!socket_path(0))
        append(text, "; SRIOV_FAST_SOCKET=none forbids to ask a server");
    for (int number = 0; (path = socket_path(number)); number++) {
        append(text, number ? " or at " : "; no server answers at ");
        append_plain(text, path, MOST_WORDS / 2);
        if (strlen(path) >= sizeof((struct sockaddr_un *)0)->sun_path)
            append(text, " (longer than the path of a socket may be)");
        else if (access(path, F_OK)) {
            append(text, " (");
            append(text, strerror(errno));
            append(text, ")");
        }
    }
}

/* Report that neither a server nor the plugin can do the work. */
static _Noreturn void fail_alone(const struct call *call)
{
    struct text msg = { 0 };
    const char *details = call->interpreter
                              ? "start the server, or run sriov-fast install again, from where sriov-fast is now"
                              : "start the server (the DaemonSet), or run sriov-fast install on this node";

    append(&msg, call->interpreter ? "cannot execute " : "this sriov does not know its interpreter");
    append_plain(&msg, call->interpreter ? call->interpreter : "", MOST_WORDS);
    append(&msg, ": ");
    append(&msg, strerror(call->fault));
    append_sockets(&msg);
    fail(call, is_verb("STATUS") ? NOT_AVAILABLE : IO_FAILURE, &msg, details);
}

/*
 * Read stdin to its end, behind the environment. Return 0, or -1 if nothing can be read: the plugin then reports it. An
 * error after the first bytes is reported here, since the plugin could not read them again.
 */
static int read_stdin(struct call *call)
{
    int by_hand = is_verb("") || is_verb("VERSION");

    if (by_hand && isatty(STDIN_FILENO)) /* a user at a terminal */
        return 0;
    call->has_stdin = 1;
    while (call->request->stdin_len < MOST_STDIN) {
        uint32_t at = call->request->stdin_len;
        ssize_t count = read(STDIN_FILENO, call->in + at, MOST_STDIN - at);

        if (!count)
            break;
        if (count > 0)
            call->request->stdin_len += (uint32_t)count;
        else if (errno == EAGAIN)
            wait_for(STDIN_FILENO, POLLIN);
        else if (errno != EINTR) {
            call->has_stdin = 0;
            if (at)
                fail_errno(call, IO_FAILURE, "stdin cannot be read to its end",
                           "give the network configuration on stdin");
            return -1;
        }
    }
    return 0;
}

/* Build the request; return 0, or -1 on error. */
static int compose(struct call *call)
{
    size_t env_len = 0;
    char *at;

    for (char **entry = environ; *entry; entry++)
        env_len += strlen(*entry) + 1;
    call->request = reserve(sizeof *call->request + env_len + MOST_STDIN);
    if (!call->request || getrandom(call->request->token, TOKEN, GRND_NONBLOCK) != TOKEN)
        return -1;
    at = (char *)(call->request + 1);
    for (char **entry = environ; *entry; entry++)
        at = stpcpy(at, *entry) + 1;
    call->request->magic = MAGIC;
    call->request->env_len = (uint32_t)env_len;
    call->in = at;
    if (read_stdin(call))
        return -1;
    call->size = sizeof *call->request + env_len + call->request->stdin_len;
    return 0;
}

/* --- the server */

/* Connect, waiting while the backlog is full. Return the socket, or -1 with errno (EAGAIN: after the deadline). */
static int connected(const struct sockaddr_un *address, struct call *call)
{
    int64_t at = now(), left = call->deadline > at ? call->deadline - at : 0;
    struct timeval limit = { .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 + 1 }; /* 0 would be no limit */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    call->socket = fd;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit))
        return -1;
    while (connect(fd, (const struct sockaddr *)address, sizeof *address))
        if (errno != EINTR)
            return -1;
    return fd;
}

/*
 * Return the write end of a pipe for the server's log, -1 on error. The caller's stderr is not sent: a hanging server
 * would keep it open after the end of this process, and many callers wait until it is closed.
 */
static int open_log(struct call *call)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        return -1;
    call->log = ends[0];
    call->log_end = ends[1];
    return ends[1];
}

/* Put the descriptors into the message, and announce them in the flags. */
static void attach_files(struct msghdr *message, struct call *call)
{
    int files[2], count = 0;
    const char *path = setting("CNI_NETNS", NULL);
    int netns = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    int log = open_log(call);
    struct cmsghdr *head = message->msg_control;

    call->netns = netns;
    if (netns >= 0) {
        call->request->flags |= HAS_NETNS;
        files[count++] = netns;
    }
    if (log >= 0) {
        call->request->flags |= HAS_STDERR;
        files[count++] = log;
    }
    if (!count) {
        message->msg_control = NULL;
        return;
    }
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    /* The type differs between C libraries. */
    head->cmsg_len = (__typeof__(head->cmsg_len))CMSG_LEN((size_t)count * sizeof *files);
    message->msg_controllen = (__typeof__(message->msg_controllen))CMSG_SPACE((size_t)count * sizeof *files);
    memcpy(CMSG_DATA(head), files, (size_t)count * sizeof *files);
}

static enum outcome send_request(int fd, struct call *call)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = { 0 };
    struct iovec rest = { .iov_base = call->request, .iov_len = call->size };
    struct msghdr message = { .msg_iov = &rest, .msg_iovlen = 1, .msg_control = &control };

    attach_files(&message, call);
    while (rest.iov_len) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent > 0) {
            call->was_sent = 1;
            rest.iov_base = (char *)rest.iov_base + sent;
            rest.iov_len -= (size_t)sent;
            message.msg_control = NULL;
            message.msg_controllen = 0;
        } else if (errno == EAGAIN) {
            if (!ready(fd, POLLOUT, call))
                return TOO_LATE;
        } else if (errno != EINTR) {
            return NO_ANSWER;
        }
    }
    return ANSWERED;
}

static enum outcome receive(int fd, void *buffer, size_t size, struct call *call)
{
    char *at = buffer;

    while (size) {
        ssize_t count = recv(fd, at, size, MSG_DONTWAIT);

        if (count > 0) {
            at += count;
            size -= (size_t)count;
        } else if (!count) {
            return NO_ANSWER;
        } else if (errno == EAGAIN) {
            if (!ready(fd, POLLIN, call))
                return TOO_LATE;
        } else if (errno == ECONNRESET) {
            return NO_ANSWER;
        } else if (errno != EINTR) {
            return BROKEN;
        }
    }
    return ANSWERED;
}

static int is_wrong(const struct reply *reply)
{
    return reply->magic != MAGIC || reply->reserved || reply->status < 0 || reply->status > 255 ||
           reply->length > MOST_REPLY;
}

/* Send the request and receive the reply with its output. */
static enum outcome ask(struct call *call, struct reply *reply, char **output)
{
    enum outcome got;
    int fd;

    call->request->flags = (is_verb("ADD") || is_verb("DEL") ? stay(&call->ours) : this_cpu()) << CPU_SHIFT;
    fd = connected(&call->server, call);
    if (fd < 0)
        return errno == EAGAIN ? TOO_LATE : NO_ANSWER;
    got = send_request(fd, call);
    if (got == TOO_LATE || !call->was_sent)
        return got;
    /* A server may reply before it has read everything. */
    got = receive(fd, reply, sizeof *reply, call);
    if (got != ANSWERED)
        return got;
    if (is_wrong(reply)) /* or refused with status -1: the server is stopping */
        return NO_ANSWER;
    *output = reserve((size_t)reply->length + 1);
    return *output ? receive(fd, *output, reply->length, call) : NO_ANSWER;
}

/* Return whether a verb is worth waiting for a server that is being replaced. */
static int is_patient(void)
{
    return is_verb("ADD") || is_verb("DEL") || is_verb("CHECK") || is_verb("GC");
}

/* Close the descriptors of an attempt without an answer: the next one opens its own. */
static void end_attempt(struct call *call)
{
    int *const fds[] = { &call->socket, &call->netns, &call->log_end, &call->log };

    relay_log(call);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}

/*
 * Ask a server that is being replaced, since the plugin cannot be executed here. The token tells the next server what
 * its predecessor did for this call.
 */
static enum outcome ask_again(struct call *call, struct reply *reply, char **output)
{
    int64_t limit = now() + call->patience;
    enum outcome got = NO_ANSWER;

    if (!is_patient() || !socket_path(0))
        return got;
    if (limit > call->deadline - ANSWER_WAIT)
        limit = call->deadline - ANSWER_WAIT;
    while (got == NO_ANSWER && now() < limit) {
        nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
        end_attempt(call);
        roam(&call->ours);
        if (find_server(&call->server))
            got = ask(call, reply, output);
    }
    return got;
}

/* Open the closed ones of the standard files, for reading only: a reply that cannot be written is undone. */
static void open_standard_files(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
}

/* Ask the server; without an answer execute the plugin; if that is impossible, wait for a server. */
static enum outcome served(struct call *call, struct reply *reply, char **output)
{
    enum outcome got = NO_ANSWER;

    if (has_standard_files() && !has_relative_path() && find_server(&call->server) && !compose(call))
        got = ask(call, reply, output);
    if (got != NO_ANSWER)
        return got;
    relay_log(call);
    in_process(call);
    open_standard_files();
    if (!call->size && compose(call))
        return NO_ANSWER;
    return ask_again(call, reply, output);
}

static _Noreturn void too_late(const struct call *call)
{
    struct text msg = { 0 };

    append(&msg, "the server at ");
    append(&msg, call->server.sun_path);
    append(&msg, " did not answer within ");
    append(&msg, call->wait);
    append(&msg, " s");
    fail(call, TRY_AGAIN, &msg, "try again; the server undoes what it did for this call (SRIOV_FAST_WAIT is the limit)");
}

/* Set the limit of the wait for a server. */
static void set_deadline(struct call *call)
{
    call->wait = setting("SRIOV_FAST_WAIT", WAIT);
    call->patience = milliseconds(call->wait);
    if (!call->patience)
        call->wait = WAIT;
    call->deadline = now() + milliseconds(call->wait);
    if (!strcmp(call->wait, WAIT))
        call->patience = RETURN_WAIT;
}

/* Execute the plugin as DEL, or ask a server if that is impossible. */
static void delete(struct call *call)
{
    struct reply reply;
    char *output;

    unsetenv("CNI_COMMAND");
    if (add_entry("CNI_COMMAND=DEL"))
        return;
    call->was_sent = 0; /* that was the ADD */
    in_process(call);
    set_deadline(call);
    if (!compose(call))
        ask_again(call, &reply, &output);
}

/* Delete an attachment that cannot be reported to the caller. */
static void undo(struct call *call)
{
    pid_t child = fork();

    if (!child) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

        if (null >= 0 && dup2(null, STDOUT_FILENO) >= 0)
            delete(call);
        _exit(1);
    }
    if (child < 0)
        say("the unreported attachment cannot be deleted", errno);
    while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

int main(int argc, char **argv)
{
    struct call call = { .argv = argv, .log = -1, .log_end = -1, .socket = -1, .netns = -1 };
    struct reply reply;
    char *output = NULL;
    enum outcome outcome;
    int fault;

    (void)argc;
    ignore_pipes(&call.pipe_action);
    set_deadline(&call);
    outcome = served(&call, &reply, &output);
    fault = errno;
    relay_log(&call);
    if (outcome == TOO_LATE)
        too_late(&call);
    if (outcome == BROKEN) {
        if (is_verb("ADD")) /* for the server, a reply in the socket's buffer is delivered */
            undo(&call);
        errno = fault;
        fail_errno(&call, TRY_AGAIN, "the server's reply cannot be received",
                   "try again; what an ADD attached is deleted again");
    }
    if (outcome == NO_ANSWER)
        fail_alone(&call);
    if (put(STDOUT_FILENO, output, reply.length)) {
        say("stdout", errno);
        if (is_verb("ADD") && !reply.status)
            undo(&call);
        _exit(1);
    }
    _exit(reply.status);
}
