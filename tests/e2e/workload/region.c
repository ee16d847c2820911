/* Ask libhugetlbfs for a region, as its users do, and print what pages the region has. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* This header needs size_t, but does not include its definition. */
#include <hugetlbfs.h>

static int on_huge_pages(const char *region)
{
	FILE *maps = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long low, high, size;
	int inside = 0;

	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
			inside = (unsigned long)region >= low && (unsigned long)region < high;
		if (inside && sscanf(line, "KernelPageSize: %lu kB", &size) == 1) {
			fclose(maps);
			return size > 4;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 8;
	char *region = get_hugepage_region(mib << 20, GHR_DEFAULT);

	if (!region) {
		printf("no region\n");
		return 1;
	}
	memset(region, 1, mib << 20);
	printf("region of %zu MiB on %s pages\n", mib, on_huge_pages(region) ? "huge" : "small");
	return 0;
}
