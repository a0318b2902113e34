/* The first process of a pod's sandbox: wait for SIGTERM or SIGINT, then exit. */
#include <signal.h>
#include <unistd.h>

static void end(int unused)
{
	(void)unused;
	_exit(0);
}

int main(void)
{
	signal(SIGTERM, end);
	signal(SIGINT, end);
	for (;;)
		pause();
}
