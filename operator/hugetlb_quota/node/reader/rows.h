/* What the BPF program, its loader and charge_list.py agree on; native byte order, no padding.
 *
 * The program's rows come one after the other, each with its name at its end. In an answer those
 * of a kind are together, and so all of one length; their names are together behind them.
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
	ROW_NODE = 3,	 /* a directory, or a file that holds something */
	ROW_REGION = 4,	 /* pages of a file that are charged by reservation */
	ROW_PRIVATE = 5, /* pages that a private mapping has reserved */
	ROW_FOLIO = 6,	 /* a page without reservation, charged on its own */
	ROW_CGROUP = 7,	 /* a cgroup that is named by another row, or is above one */
	ROW_COUNTER = 8, /* what a cgroup and all below it use of a page size */
};

#define KINDS 8

/* Begins each row: its kind, its bytes with this header, and an index as the kind has it. */
struct header {
	__u16 kind, length;
	__u32 index;
};

/* index: of the page size. `used` and `listed` are huge pages. */
struct size_row {
	struct header header;
	__u64 page_bytes;
	__s64 used, listed;
};

/* index: of the superblock. `device` is the kernel's dev_t: 20 bits of minor number. */
struct super_row {
	struct header header;
	__u32 device, size, internal, unused;
};

/* index: of the superblock. `name_at` is where in the names its `name_length` bytes begin, as the
 * loader puts them together. `number` is the node's in this read: inode numbers are none of their own, a System V segment has its ID for one.
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

/* index: of the superblock; pages [from, to). */
struct region_row {
	struct header header;
	__u64 node;
	__s64 from, to;
	__u64 cgroup;
};

/* index: of the superblock; `from` is the page of the file. */
struct private_row {
	struct header header;
	__u64 node;
	__s64 from, pages;
	__u64 cgroup;
};

/* index: of the page size; device and inode are 0 for a page that is in no file. */
struct folio_row {
	struct header header;
	__u64 inode, cgroup;
	__u32 device, unused;
};

/* index: bytes of the name; `parent` is 0 for the root. */
struct cgroup_row {
	struct header header;
	__u64 id, parent, name_at;
	char name[NAME];
};

/* index: of the page size. Huge pages. */
struct counter_row {
	struct header header;
	__u64 cgroup;
	__s64 reserved, faulted;
};

/* Why a read is none. */
enum torn {
	WHOLE = 0,
	BROKEN_LINK,   /* a list led elsewhere */
	FOREIGN,       /* something belongs to another than it must */
	OUT_OF_ORDER,  /* regions overlap, or end before they begin */
	OUT_OF_BOUNDS, /* a number that its file or pool can't have */
	TOO_LONG,      /* it took longer than MOST_NANOSECONDS */
	FULL,	       /* the rows need a larger buffer */
};

/* What the kernel lacks; the loader says it in a sentence. */
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

/* A program that runs in the kernel can't be killed, so it ends by itself. */
#define MOST_NANOSECONDS 1000000000ULL
/* A pod can map one file a million times; what lies beyond is left out, and the rest stays exact. */
#define MOST_AREAS (1 << 20)

/* What a run says beside its rows. `before`, `after`, `listed`: huge pages by page size. */
struct run {
	__u32 anchor; /* in: a descriptor of some hugetlbfs file */
	__u32 missing, torn, sizes, areas, unused;
	__u64 rows, inodes;
	__s64 before[SIZES], after[SIZES], listed[SIZES];
};

/* The answer to a request: this, then `bytes` of a list, or of a sentence where status is ERROR. A
 * list is the lengths in bytes of its sections, KINDS of rows and the names, and the sections.
 */
#define MAGIC 0x4c435148 /* "HQCL" */
#define PROTOCOL 1
#define SECTIONS (KINDS + 1)
#define REQUEST 'r'

enum status {
	READY = 1, /* said once, unasked: the program is loaded */
	REST = 2,  /* the counters were the same before and after, and are what is listed */
	MOVED = 3, /* nothing was torn, but counters moved, or count what no row tells */
	ERROR = 4,
};

struct answer {
	__u32 magic;
	__u16 protocol, status;
	__u64 bytes;
	__u32 reads;	/* how often the kernel was read for it */
	__u32 left_out; /* whether there are more than MOST_AREAS mappings */
	__u64 nanoseconds;
};

#endif
