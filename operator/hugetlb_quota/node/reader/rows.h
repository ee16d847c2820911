/* The format that the BPF program, its loader and charge_rows.py share. Native byte order, and no
 * padding.
 *
 * The BPF program writes its rows one after the other, each with its name at the end. In an answer
 * all rows of one kind are together and have the same length. All names follow after the rows.
 */
#ifndef HUGETLB_QUOTA_ROWS_H
#define HUGETLB_QUOTA_ROWS_H

#include <linux/types.h>

/* Page sizes: x86 has two, arm64 four, powerpc the most. */
#define SIZES 16
#define NAME 256

enum kind {
	ROW_SIZE = 1,	 /* a page size, and what the root cgroup counts of it */
	ROW_SUPER = 2,	 /* a hugetlbfs superblock */
	ROW_NODE = 3,	 /* a directory, or a file that has pages or charges */
	ROW_REGION = 4,	 /* reserved pages of a file */
	ROW_PRIVATE = 5, /* pages that a private mapping has reserved */
	ROW_FOLIO = 6,	 /* one page that is charged without a reservation */
	ROW_CGROUP = 7,	 /* a cgroup that another row names, or an ancestor of such a cgroup */
	ROW_COUNTER = 8, /* the pages of one size that a cgroup and all cgroups below use */
};

#define KINDS 8

/* The start of each row. `length` is the row's length in bytes with this header. The meaning of
 * `index` depends on the kind.
 */
struct header {
	__u16 kind, length;
	__u32 index;
};

/* `index` numbers the page sizes. `used` and `listed` are huge pages. */
struct size_row {
	struct header header;
	__u64 page_bytes;
	__s64 used, listed;
};

/* `index` numbers the superblocks. `device` is the kernel's dev_t, with 20 bits for the minor
 * number. `size` is the index of the page size.
 */
struct super_row {
	struct header header;
	__u32 device, size, internal, unused;
};

/* `index` is the superblock's. The name has `name_length` bytes, which start at `name_at` of all
 * names; the loader sets `name_at`. `number` identifies the node in this read. The inode number
 * does not: a System V segment has its ID as inode number.
 */
struct node_row {
	struct header header;
	__u64 number, inode, parent;
	__s64 bytes;
	__u32 links;
	__u16 directory, name_length;
	__u64 name_at;
	char name[NAME];
};

/* `index` is the superblock's; pages [from, to). */
struct region_row {
	struct header header;
	__u64 node;
	__s64 from, to;
	__u64 cgroup;
};

/* `index` is the superblock's; `from` is the first page of the file that is mapped. */
struct private_row {
	struct header header;
	__u64 node;
	__s64 from, pages;
	__u64 cgroup;
};

/* `index` is the page size's; `device` and `inode` are 0 for a page that is in no file. */
struct folio_row {
	struct header header;
	__u64 inode, cgroup;
	__u32 device, unused;
};

/* `index` is the length of the name in bytes; `parent` is 0 for the root. */
struct cgroup_row {
	struct header header;
	__u64 id, parent, name_at;
	char name[NAME];
};

/* `index` is the page size's; `reserved` and `faulted` are huge pages. */
struct counter_row {
	struct header header;
	__u64 cgroup;
	__s64 reserved, faulted;
};

/* Why a walk gave no consistent list. */
enum torn {
	WHOLE = 0,
	BROKEN_LINK,   /* a link of a list did not lead back */
	FOREIGN,       /* an object belonged to another object than expected */
	OUT_OF_ORDER,  /* regions overlap, or end before they begin */
	OUT_OF_BOUNDS, /* a number is larger than its file or pool allows */
	TOO_LONG,      /* the walk took longer than MOST_NANOSECONDS */
	FULL,	       /* the rows need a larger buffer */
};

/* What the kernel lacks; the loader has a sentence for each. */
enum missing {
	NOTHING = 0,
	NO_CONTROLLER,
	NO_RESERVATIONS,
	NO_REGION_OWNER,
	NO_RESERVE_MAP,
	NO_ALIASES,
	NO_ANCHOR,
	TOO_MANY_SIZES,
};

/* A BPF program can't be killed while it runs, so the walk ends by itself after this time. */
#define MOST_NANOSECONDS 1000000000ULL
/* A pod can map one file a million times. The walk leaves out mappings beyond this number; all
 * other charges stay exact.
 */
#define MOST_AREAS (1 << 20)

/* The input and the result of a run, beside its rows. `before` and `after` are what the root's
 * counters say, `listed` is what the rows say: huge pages by page size.
 */
struct run {
	__u32 anchor; /* input: a descriptor of any hugetlbfs file */
	__u32 missing, torn, sizes, areas, unused;
	__u64 rows, inodes;
	__s64 before[SIZES], after[SIZES], listed[SIZES];
};

/* An answer is a `struct answer` and then `bytes` bytes: a sentence if the status is ERROR, else
 * a list. A list is the lengths in bytes of all sections, then the sections: one for each kind of
 * rows, and one for the names.
 */
#define MAGIC 0x4c435148 /* "HQCL" */
#define PROTOCOL 1
#define SECTIONS (KINDS + 1)
#define REQUEST 'r'

enum status {
	READY = 1, /* sent once at the start, without a request: the program is loaded */
	REST = 2,  /* the root's counters did not change, and equal what is listed */
	MOVED = 3, /* the walk was whole, but counters changed, or count more than the rows */
	ERROR = 4,
};

struct answer {
	__u32 magic;
	__u16 protocol, status;
	__u64 bytes;
	__u32 reads;	/* the number of walks for this answer */
	__u32 left_out; /* 1 if there are more than MOST_AREAS mappings */
	__u64 nanoseconds;
};

#endif
