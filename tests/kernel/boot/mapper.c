/* Gets huge pages in one of the ways of tests/kernel/ways.py, creates the file READY, and waits.
 *
 *     mapper KIND SHARING USE RESERVE PAGES READY PATH
 *     mapper remove SEGMENT ...
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#define PAGE (2UL << 20)

static void check(int fails, const char *what)
{
	if (fails) {
		perror(what);
		exit(1);
	}
}

static int remove_segments(char **ids)
{
	for (; *ids; ids++)
		check(shmctl(atoi(*ids), IPC_RMID, NULL), *ids);
	return 0;
}

int main(int count, char **words)
{
	if (count > 1 && !strcmp(words[1], "remove"))
		return remove_segments(words + 2);
	check(count != 8, "seven words");
	const char *kind = words[1], *ready = words[6], *path = words[7];
	int shared = !strcmp(words[2], "shared"), noreserve = !strcmp(words[4], "noreserve");
	int populate = !strcmp(words[3], "populate"), touch = !strcmp(words[3], "write");
	size_t length = atoi(words[5]) * PAGE;
	int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (noreserve ? MAP_NORESERVE : 0) |
		    (populate ? MAP_POPULATE : 0);
	int file = -1;
	char *at;

	if (!strcmp(kind, "segment")) {
		int id = shmget(IPC_PRIVATE, length,
				IPC_CREAT | SHM_HUGETLB | 0600 | (noreserve ? SHM_NORESERVE : 0));

		check(id < 0, "shmget");
		at = shmat(id, NULL, 0);
		check(at == (void *)-1, "shmat");
	} else {
		if (!strcmp(kind, "file"))
			file = open(path, O_RDWR | O_CREAT, 0600);
		else if (!strcmp(kind, "memfd"))
			file = memfd_create("m", MFD_HUGETLB);
		else
			flags |= MAP_ANONYMOUS | MAP_HUGETLB;
		if (!(flags & MAP_ANONYMOUS))
			check(file < 0 || ftruncate(file, length), "file");
		at = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, file, 0);
		check(at == MAP_FAILED, "mmap");
	}
	if (touch)
		at[0] = at[length - PAGE] = 'x';
	check(creat(ready, 0600) < 0, ready);
	pause();
	return 0;
}
