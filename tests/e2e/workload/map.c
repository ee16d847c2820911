/*
 * Map huge pages, touch them, print the results, and hold the pages.
 *
 *   map [-s PAGE_KIB] [-x] [-n] MIB [FILE]
 *
 * -s  page size in KiB (2048)
 * -x  exit with status 0 instead of holding the pages
 * -n  do not touch the pages
 *
 * Without FILE the mapping is private and anonymous. With FILE, on a hugetlbfs, the mapping is shared.
 * The program prints one fact on each line: "mapped 8 MiB", "touched 8 MiB", "mmap 24 MiB: Cannot
 * allocate memory". It continues after a refusal. Before it dies of SIGBUS it prints "SIGBUS". SIGTERM
 * ends the program with status 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAP_HUGE_SHIFT 26

static void on_bus_error(int number)
{
	static const char said[] = "SIGBUS\n";

	if (write(STDOUT_FILENO, said, sizeof(said) - 1) < 0)
		_exit(2);
	signal(number, SIG_DFL);
	raise(number);
}

static void on_terminate(int number)
{
	(void)number;
	_exit(0);
}

static int open_file(const char *path, size_t length)
{
	int file = open(path, O_RDWR | O_CREAT, 0644);

	if (file < 0 || ftruncate(file, (off_t)length) < 0) {
		printf("open %s: %s\n", path, strerror(errno));
		exit(1);
	}
	return file;
}

int main(int argc, char **argv)
{
	size_t page = 2048UL << 10, mib, length;
	int leave = 0, touch = 1, file = -1, option;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	volatile char *pages;

	while ((option = getopt(argc, argv, "s:xn")) != -1) {
		switch (option) {
		case 's':
			page = strtoul(optarg, NULL, 10) << 10;
			break;
		case 'x':
			leave = 1;
			break;
		case 'n':
			touch = 0;
			break;
		default:
			return 2;
		}
	}
	if (optind >= argc) {
		fprintf(stderr, "usage: map [-s PAGE_KIB] [-x] [-n] MIB [FILE]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGBUS, on_bus_error);
	signal(SIGTERM, on_terminate);
	mib = strtoul(argv[optind], NULL, 10);
	length = mib << 20;
	if (optind + 1 < argc) {
		file = open_file(argv[optind + 1], length);
		flags = MAP_SHARED;
	} else {
		flags |= __builtin_ctzl(page) << MAP_HUGE_SHIFT;
	}
	pages = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, file, 0);
	if (pages == MAP_FAILED) {
		printf("mmap %zu MiB: %s\n", mib, strerror(errno));
	} else {
		printf("mapped %zu MiB\n", mib);
		for (size_t at = 0; touch && at < length; at += page)
			pages[at] = 1;
		if (touch)
			printf("touched %zu MiB\n", mib);
	}
	if (leave)
		return 0;
	for (;;)
		pause();
}
