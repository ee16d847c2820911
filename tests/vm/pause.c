/* A pod's sandbox: waits to be killed, and reaps the children of processes that ended. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void terminate(int number)
{
	(void)number;
	_exit(0);
}

static void reap(int number)
{
	(void)number;
	while (waitpid(-1, 0, WNOHANG) > 0)
		;
}

int main(void)
{
	signal(SIGTERM, terminate);
	signal(SIGINT, terminate);
	signal(SIGCHLD, reap);
	for (;;)
		pause();
}
