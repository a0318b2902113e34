/* Start processes concurrently, as a runtime does for several pods, and print when each began and ended.
 *
 *     burst COUNT <LIST
 *
 * LIST has for each process: the path of the file for its stdin, the arguments and an empty string, the
 * environment and an empty string. A zero byte ends each string. The output has a line for each process, in
 * the order of LIST: the wait status, and CLOCK_MONOTONIC in nanoseconds before its start and after its end.
 * A separate thread waits for the processes, so that starting one does not delay the time of another's end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, WORDS = 256 };

struct job {
	char *input;
	char *argv[WORDS], *env[WORDS];
	pid_t pid;
	long long begin;
};

struct ending {
	pid_t pid;
	int status;
	long long at;
};

static struct job jobs[MOST];
static struct ending endings[MOST];
static int count;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(2);
	}
}

static long long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* --- the list */

/* Return the next string of stdin; an empty one ends a list. */
static char *word(void)
{
	char *text = NULL;
	size_t room = 0;
	check(getdelim(&text, &room, 0, stdin) >= 0, "LIST");
	return text;
}

static void words(char *into[WORDS])
{
	int number = 0;
	while (*(into[number] = word()))
		check(++number < WORDS, "LIST: too many words");
	into[number] = NULL;
}

static void read_list(void)
{
	for (int number = 0; number < count; number++) {
		jobs[number].input = word();
		words(jobs[number].argv);
		words(jobs[number].env);
	}
}

/* --- start, and wait */

static void *wait_for_all(void *unused)
{
	for (int ended = 0; ended < count;) {
		struct ending *one = &endings[ended];
		one->pid = waitpid(-1, &one->status, 0);
		one->at = now();
		if (one->pid > 0)
			ended++;
		else
			sched_yield(); /* all started processes have ended; others are not started yet */
	}
	return unused;
}

static void start(struct job *job)
{
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, job->input, O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	job->begin = now();
	errno = posix_spawn(&job->pid, job->argv[0], &actions, NULL, job->argv, job->env);
	check(errno == 0, job->argv[0]);
	posix_spawn_file_actions_destroy(&actions);
}

static void say(const struct job *job)
{
	for (int number = 0; number < count; number++)
		if (endings[number].pid == job->pid)
			printf("%d %lld %lld\n", endings[number].status, job->begin, endings[number].at);
}

int main(int argc, char **argv)
{
	pthread_t waiting;
	count = argc > 1 ? atoi(argv[1]) : 0;
	if (count < 1 || count > MOST) {
		fprintf(stderr, "usage: burst COUNT <LIST\n");
		return 2;
	}
	read_list();
	start(&jobs[0]);
	errno = pthread_create(&waiting, NULL, wait_for_all, NULL);
	check(errno == 0, "pthread_create");
	for (int number = 1; number < count; number++)
		start(&jobs[number]);
	pthread_join(waiting, NULL);
	for (int number = 0; number < count; number++)
		say(&jobs[number]);
	return 0;
}
