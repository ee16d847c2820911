/* Reads the kernel's charge list: the cgroup that each huge page of the host is charged to.
 *
 * The walk starts at the descriptor of a hugetlb memfd. The file system type of its superblock lists
 * every hugetlbfs superblock. A superblock lists its inodes. An inode leads to the regions of its
 * reserve map and to the VMAs that map it. Pages without a reservation are on the active list of
 * their page size.
 *
 * The program takes no locks, and the lists may change during the walk. So the program checks every
 * step: each link must lead back, an inode must belong to its superblock, regions must be in order,
 * and a css must belong to the hugetlb controller. If a check fails, the read is torn, and the
 * loader reads again. The root cgroup's counters before and after the walk show if a charge came or
 * went.
 *
 * All state is global: one process runs this program, and the runs do not overlap.
 */
#include <linux/bpf.h>
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "rows.h"

#define HUGETLBFS_MAGIC 0x958458f6
#define SB_KERNMOUNT (1 << 22)
#define VM_MAYSHARE 0x80
/* Flags in vm_private_data of a private mapping (mm/hugetlb.c). */
#define HPAGE_RESV_OWNER 1UL
#define HPAGE_RESV_MASK 3UL
/* Flags in page->mapping: anonymous, movable. */
#define MAPPING_FLAGS 3UL
/* In Linux 6.1 a folio has no field for the cgroup of its reservation. The cgroup is in `private` of
 * this tail page.
 */
#define TAIL_OF_RSVD_CGROUP 3
/* The most steps that bpf_loop allows. */
#define MOST_STEPS (1 << 23)
#define MOST_SUPERS (1 << 16)
#define MOST_LEVELS 512
/* No file has more pages: s_maxbytes is 2^63 - 1. */
#define MOST_PAGES (1LL << 51)

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22); /* the loader makes the buffer larger if it is too small */
} rows SEC(".maps");

/* Cgroups that have a row already. The key is the ID, the value the number of the run. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, __u64);
	__type(value, __u64);
} named SEC(".maps");

/* Not static: the compiler may make a static variable narrower than its BTF says, and the kernel
 * then refuses the program.
 */
struct run run;

__u64 deadline, number;
struct cgroup_subsys *controller;
struct cgroup_subsys_state *root, *level;
struct hstate *sizes;
__u64 page_bytes[SIZES];

struct hlist_node *super_position;
struct super_block *super;
struct hstate *size;
__u32 super_index, size_index;

struct list_head *inode_head, *inode_position;
struct inode *inode;
__u32 inode_named;

struct list_head *region_head, *region_position;
__s64 region_end;

struct rb_node *area_position, *area_from;

struct list_head *folio_head, *folio_position;

struct node_row node_row;
struct cgroup_row cgroup_row;

static __always_inline long torn(__u32 why)
{
	if (!run.torn)
		run.torn = why;
	return 1;
}

static __always_inline int late(void)
{
	return bpf_ktime_get_ns() > deadline;
}

static __always_inline long emit(void *row, __u64 length)
{
	if (bpf_ringbuf_output(&rows, row, length, BPF_RB_NO_WAKEUP))
		return torn(FULL);
	run.rows++;
	return 0;
}

/* Returns the length of a row with its name. The mask shows the verifier an upper bound. */
static __always_inline __u64 padded(__u64 before, __u64 name)
{
	return (before + name + 7) & ~7ULL & 511;
}

/* Returns the element after `position`, or NULL if the element does not link back. An element that
 * was removed from its list may link to itself: this is NULL too, except for the head.
 */
static __always_inline struct list_head *next_of(struct list_head *position, struct list_head *head)
{
	struct list_head *next = BPF_CORE_READ(position, next);

	if (!next || BPF_CORE_READ(next, prev) != position || (next == position && next != head))
		return 0;
	return next;
}

/* --- cgroups --- */

static __always_inline __s64 used(struct cgroup_subsys_state *css, __u32 offset, __u32 index)
{
	struct page_counter *counter = (void *)container_of(css, struct hugetlb_cgroup, css) + offset +
				       index * bpf_core_type_size(struct page_counter);

	return BPF_CORE_READ(counter, usage.counter);
}

#define RESERVED bpf_core_field_offset(struct hugetlb_cgroup, rsvd_hugepage)
#define FAULTED bpf_core_field_offset(struct hugetlb_cgroup, hugepage)

static __always_inline struct hstate *size_at(__u32 index)
{
	return (void *)sizes + index * bpf_core_type_size(struct hstate);
}

static __always_inline __u64 id_of(struct cgroup_subsys_state *css)
{
	return BPF_CORE_READ(css, cgroup, kn, id);
}

static long one_counter(__u64 index, void *unused)
{
	struct counter_row row = {};
	__u32 order;

	if (index >= run.sizes)
		return 1;
	order = BPF_CORE_READ(size_at(index), order) & 31;
	row.header.kind = ROW_COUNTER;
	row.header.length = sizeof row;
	row.header.index = index;
	row.cgroup = id_of(level);
	row.reserved = used(level, RESERVED, index) >> order;
	row.faulted = used(level, FAULTED, index) >> order;
	if (!row.reserved && !row.faulted)
		return 0;
	return emit(&row, sizeof row);
}

/* Writes the rows of the cgroup at `level`, and moves `level` to the parent. Ends at a cgroup that
 * has a row already.
 */
static long one_level(__u64 depth, void *unused)
{
	struct cgroup_subsys_state *parent;
	__u64 id, whole, *last_run;
	long length;

	if (!level || BPF_CORE_READ(level, ss) != controller)
		return torn(FOREIGN);
	id = id_of(level);
	last_run = bpf_map_lookup_elem(&named, &id);
	if (last_run && *last_run == number)
		return 1;
	bpf_map_update_elem(&named, &id, &number, BPF_ANY);
	parent = BPF_CORE_READ(level, parent);
	length = bpf_probe_read_kernel_str(cgroup_row.name, NAME,
					   BPF_CORE_READ(level, cgroup, kn, name));
	if (length < 1 || (!parent && level != root))
		return torn(FOREIGN);
	cgroup_row.header.kind = ROW_CGROUP;
	cgroup_row.header.index = length - 1;
	whole = padded(__builtin_offsetof(struct cgroup_row, name), length);
	cgroup_row.header.length = whole;
	cgroup_row.id = id;
	cgroup_row.parent = parent ? id_of(parent) : 0;
	if (whole > sizeof cgroup_row)
		return torn(OUT_OF_BOUNDS);
	if (emit(&cgroup_row, whole))
		return 1;
	bpf_loop(SIZES, one_counter, 0, 0);
	level = parent;
	return !parent;
}

/* Writes the rows of a charged cgroup and its ancestors if they are missing. Returns the cgroup's
 * ID, or 0 if the read is torn.
 */
static __noinline __u64 charged(struct cgroup_subsys_state *css)
{
	level = css;
	if (bpf_loop(MOST_LEVELS, one_level, 0, 0) >= MOST_LEVELS)
		torn(OUT_OF_BOUNDS);
	return run.torn ? 0 : id_of(css);
}

/* --- inodes --- */

static __always_inline struct resv_map *reserve_map(struct inode *of)
{
	struct address_space *mapping =
		(void *)of + bpf_core_field_offset(struct inode, i_data);

	if (bpf_core_field_exists(mapping->i_private_data))
		return BPF_CORE_READ(mapping, i_private_data);
	return BPF_CORE_READ((struct address_space___private *)mapping, private_data);
}

static __always_inline struct dentry *dentry_of(struct hlist_node *alias)
{
	if (bpf_core_field_exists(struct dentry, d_u.d_alias))
		return container_of(alias, struct dentry, d_u.d_alias);
	return (void *)container_of(alias, struct dentry___alias, d_alias);
}

static __noinline long name_inode(void)
{
	struct hlist_node *alias;
	struct dentry *dentry, *parent;
	long length = 1;
	__u64 whole;

	if (inode_named)
		return 0;
	inode_named = 1;
	node_row.header.kind = ROW_NODE;
	node_row.header.index = super_index;
	node_row.number = run.inodes;
	node_row.inode = BPF_CORE_READ(inode, i_ino);
	node_row.bytes = BPF_CORE_READ(inode, i_size);
	node_row.links = BPF_CORE_READ(inode, i_nlink);
	node_row.directory = (BPF_CORE_READ(inode, i_mode) & 0170000) == 0040000;
	node_row.parent = 0;
	node_row.name[0] = 0;
	alias = BPF_CORE_READ(inode, i_dentry.first);
	if (alias) {
		dentry = dentry_of(alias);
		if (BPF_CORE_READ(dentry, d_inode) != inode)
			return torn(FOREIGN);
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent != dentry)
			node_row.parent = BPF_CORE_READ(parent, d_inode, i_ino);
		length = bpf_probe_read_kernel_str(node_row.name, NAME,
						   BPF_CORE_READ(dentry, d_name.name));
		if (length < 1)
			return torn(FOREIGN);
	}
	node_row.name_length = length - 1;
	whole = padded(__builtin_offsetof(struct node_row, name), length);
	node_row.header.length = whole;
	if (whole > sizeof node_row)
		return torn(OUT_OF_BOUNDS);
	return emit(&node_row, whole);
}

static long one_region(__u64 step, void *unused)
{
	struct file_region *region;
	struct cgroup_subsys_state *css;
	struct region_row row = {};

	if (region_position == region_head)
		return 1;
	region = container_of(region_position, struct file_region, link);
	row.from = BPF_CORE_READ(region, from);
	row.to = BPF_CORE_READ(region, to);
	if (row.from < region_end || row.to <= row.from)
		return torn(OUT_OF_ORDER);
	if (row.to > MOST_PAGES)
		return torn(OUT_OF_BOUNDS);
	region_end = row.to;
	css = BPF_CORE_READ(region, css);
	if (css) {
		row.header.kind = ROW_REGION;
		row.header.length = sizeof row;
		row.header.index = super_index;
		row.node = run.inodes;
		row.cgroup = charged(css);
		if (!row.cgroup || name_inode() || emit(&row, sizeof row))
			return 1;
		run.listed[size_index & (SIZES - 1)] += row.to - row.from;
	}
	region_position = next_of(region_position, region_head);
	if (!region_position)
		return torn(BROKEN_LINK);
	return !(step & 255) && late() ? torn(TOO_LONG) : 0;
}

/* A private mapping has its reservation in the VMA that made it (mm/hugetlb.c, HPAGE_RESV_OWNER),
 * not in the inode. The whole length is charged until the mapping ends.
 */
static __always_inline long private_mapping(struct rb_node *node)
{
	struct vm_area_struct *area = container_of(node, struct vm_area_struct, shared.rb);
	unsigned long private, start = BPF_CORE_READ(area, vm_start), end = BPF_CORE_READ(area, vm_end);
	struct cgroup_subsys_state *css;
	struct private_row row = {};
	__u64 page = BPF_CORE_READ(super, s_blocksize), shift;

	if (BPF_CORE_READ(area, vm_file, f_inode) != inode)
		return torn(FOREIGN);
	private = (unsigned long)BPF_CORE_READ(area, vm_private_data);
	if (BPF_CORE_READ(area, vm_flags) & VM_MAYSHARE || !(private & HPAGE_RESV_OWNER))
		return 0;
	css = BPF_CORE_READ((struct resv_map *)(private & ~HPAGE_RESV_MASK), css);
	if (!css)
		return 0;
	shift = BPF_CORE_READ(size, order) & 31;
	if (!page || end <= start || (end - start) % page)
		return torn(OUT_OF_BOUNDS);
	row.header.kind = ROW_PRIVATE;
	row.header.length = sizeof row;
	row.header.index = super_index;
	row.node = run.inodes;
	row.from = BPF_CORE_READ(area, vm_pgoff) >> shift;
	row.pages = (end - start) / page;
	row.cgroup = charged(css);
	if (!row.cgroup || name_inode() || emit(&row, sizeof row))
		return 1;
	run.listed[size_index & (SIZES - 1)] += row.pages;
	return 0;
}

/* Makes one step through the tree of VMAs that map the inode: down left, down right, or up. */
static long one_area(__u64 step, void *unused)
{
	struct rb_node *node = area_position, *left, *right, *parent;

	if (!node)
		return 1;
	left = BPF_CORE_READ(node, rb_left);
	right = BPF_CORE_READ(node, rb_right);
	parent = (void *)(BPF_CORE_READ(node, __rb_parent_color) & ~3UL);
	if (area_from == parent) {
		if (++run.areas > MOST_AREAS || private_mapping(node))
			return 1;
		area_position = left ? left : right ? right : parent;
	} else if (area_from == left) {
		area_position = right ? right : parent;
	} else if (area_from == right) {
		area_position = parent;
	} else {
		return torn(BROKEN_LINK);
	}
	area_from = node;
	return !(step & 255) && late() ? torn(TOO_LONG) : 0;
}

static __always_inline long one_file(void)
{
	struct resv_map *map = reserve_map(inode);

	if (map) {
		region_head = (void *)map + bpf_core_field_offset(struct resv_map, regions);
		region_position = next_of(region_head, region_head);
		region_end = 0;
		if (!region_position)
			return torn(BROKEN_LINK);
		if (bpf_loop(MOST_STEPS, one_region, 0, 0) >= MOST_STEPS)
			return torn(TOO_LONG);
	}
	area_position = BPF_CORE_READ(inode, i_data.i_mmap.rb_root.rb_node);
	area_from = 0;
	if (area_position && run.areas <= MOST_AREAS &&
	    bpf_loop(3 * MOST_AREAS, one_area, 0, 0) >= 3 * MOST_AREAS)
		return torn(TOO_LONG);
	/* The file may have unreserved pages. The rows of folios name only the inode. */
	if (!run.torn && BPF_CORE_READ(inode, i_data.nrpages))
		name_inode();
	return run.torn;
}

static long one_inode(__u64 step, void *unused)
{
	__u32 kind;

	if (inode_position == inode_head)
		return 1;
	inode = container_of(inode_position, struct inode, i_sb_list);
	if (BPF_CORE_READ(inode, i_sb) != super)
		return torn(FOREIGN);
	run.inodes++;
	inode_named = 0;
	kind = BPF_CORE_READ(inode, i_mode) & 0170000;
	if (kind == 0040000 ? name_inode() : kind == 0100000 ? one_file() : 0)
		return 1;
	inode_position = next_of(inode_position, inode_head);
	if (!inode_position)
		return torn(BROKEN_LINK);
	return !(step & 255) && late() ? torn(TOO_LONG) : 0;
}

/* --- pages without a reservation --- */

static __always_inline struct cgroup_subsys_state *rsvd_cgroup(struct folio *folio)
{
	void *tail;

	if (bpf_core_field_exists(folio->_hugetlb_cgroup_rsvd))
		return BPF_CORE_READ(folio, _hugetlb_cgroup_rsvd);
	tail = (void *)folio + TAIL_OF_RSVD_CGROUP * bpf_core_type_size(struct page);
	return (void *)BPF_CORE_READ((struct page *)tail, private);
}

static long one_folio(__u64 step, void *unused)
{
	struct folio *folio;
	struct cgroup_subsys_state *css;
	struct address_space *mapping;
	struct folio_row row = {};

	if (folio_position == folio_head)
		return 1;
	folio = container_of(folio_position, struct folio, lru);
	/* The css is the first member of struct hugetlb_cgroup. */
	css = rsvd_cgroup(folio);
	if (css) {
		row.header.kind = ROW_FOLIO;
		row.header.length = sizeof row;
		row.header.index = size_index;
		mapping = BPF_CORE_READ(folio, mapping);
		if (mapping && !((unsigned long)mapping & MAPPING_FLAGS)) {
			row.inode = BPF_CORE_READ(mapping, host, i_ino);
			row.device = BPF_CORE_READ(mapping, host, i_sb, s_dev);
		}
		row.cgroup = charged(css);
		if (!row.cgroup || emit(&row, sizeof row))
			return 1;
		run.listed[size_index & (SIZES - 1)]++;
	}
	folio_position = next_of(folio_position, folio_head);
	if (!folio_position)
		return torn(BROKEN_LINK);
	return !(step & 255) && late() ? torn(TOO_LONG) : 0;
}

static __always_inline long all_folios(void)
{
	__u64 most = BPF_CORE_READ(size, nr_huge_pages) + 1;

	folio_head = (void *)size + bpf_core_field_offset(struct hstate, hugepage_activelist);
	folio_position = next_of(folio_head, folio_head);
	if (!folio_position)
		return torn(BROKEN_LINK);
	if (most > MOST_STEPS)
		most = MOST_STEPS;
	bpf_loop(most, one_folio, 0, 0);
	if (folio_position != folio_head)
		torn(OUT_OF_BOUNDS);
	return run.torn;
}

/* --- superblocks --- */

static __always_inline struct hstate *size_of_super(struct super_block *of)
{
	struct hugetlbfs_sb_info *info = BPF_CORE_READ(of, s_fs_info);

	return BPF_CORE_READ(info, hstate);
}

/* Finds the array of page sizes: the kernel has one internal mount for each page size, and the
 * smallest address of their hstates is the start of the array.
 */
static long find_sizes(__u64 step, void *unused)
{
	struct super_block *of;
	struct hstate *found;

	if (!super_position)
		return 1;
	of = container_of(super_position, struct super_block, s_instances);
	if (BPF_CORE_READ(of, s_magic) != HUGETLBFS_MAGIC)
		return torn(FOREIGN);
	if (BPF_CORE_READ(of, s_flags) & SB_KERNMOUNT) {
		found = size_of_super(of);
		if (!sizes || found < sizes)
			sizes = found;
		run.sizes++;
	}
	super_position = BPF_CORE_READ(super_position, next);
	return 0;
}

static long one_super(__u64 step, void *unused)
{
	struct super_row row = {};

	if (!super_position)
		return 1;
	super = container_of(super_position, struct super_block, s_instances);
	if (BPF_CORE_READ(super, s_magic) != HUGETLBFS_MAGIC)
		return torn(FOREIGN);
	size = size_of_super(super);
	size_index = ((unsigned long)size - (unsigned long)sizes) / bpf_core_type_size(struct hstate);
	if (size_index >= run.sizes || size_at(size_index) != size)
		return torn(FOREIGN);
	page_bytes[size_index & (SIZES - 1)] = BPF_CORE_READ(super, s_blocksize);
	super_index = step;
	row.header.kind = ROW_SUPER;
	row.header.length = sizeof row;
	row.header.index = super_index;
	row.device = BPF_CORE_READ(super, s_dev);
	row.size = size_index;
	row.internal = !!(BPF_CORE_READ(super, s_flags) & SB_KERNMOUNT);
	if (emit(&row, sizeof row))
		return 1;
	inode_head = (void *)super + bpf_core_field_offset(struct super_block, s_inodes);
	inode_position = next_of(inode_head, inode_head);
	if (!inode_position)
		return torn(BROKEN_LINK);
	if (bpf_loop(MOST_STEPS, one_inode, 0, 0) >= MOST_STEPS)
		return torn(TOO_LONG);
	if (run.torn || (row.internal && all_folios()))
		return 1;
	super_position = BPF_CORE_READ(super_position, next);
	return 0;
}

static long count_before(__u64 index, void *unused)
{
	if (index >= run.sizes)
		return 1;
	run.before[index & (SIZES - 1)] =
		used(root, RESERVED, index) >> (BPF_CORE_READ(size_at(index), order) & 31);
	return 0;
}

static long count_after(__u64 index, void *unused)
{
	struct size_row row = {};
	__u32 order;

	if (index >= run.sizes)
		return 1;
	order = BPF_CORE_READ(size_at(index), order) & 31;
	row.header.kind = ROW_SIZE;
	row.header.length = sizeof row;
	row.header.index = index;
	row.page_bytes = page_bytes[index & (SIZES - 1)];
	row.used = used(root, RESERVED, index) >> order;
	row.listed = run.listed[index & (SIZES - 1)];
	run.after[index & (SIZES - 1)] = row.used;
	return emit(&row, sizeof row);
}

static long find_root(__u64 depth, void *unused)
{
	struct cgroup_subsys_state *parent = BPF_CORE_READ(root, parent);

	if (!parent)
		return 1;
	root = parent;
	return 0;
}

/* --- the program --- */

static __always_inline struct file_system_type *hugetlbfs(struct task_struct *task)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = 0;
	struct super_block *of;

	if (run.anchor >= BPF_CORE_READ(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof file, files + run.anchor);
	of = BPF_CORE_READ(file, f_inode, i_sb);
	if (BPF_CORE_READ(of, s_magic) != HUGETLBFS_MAGIC)
		return 0;
	return BPF_CORE_READ(of, s_type);
}

static __always_inline __u32 missing_in_kernel(void)
{
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, hugetlb_cgrp_id))
		return NO_CONTROLLER;
	if (!bpf_core_field_exists(struct hugetlb_cgroup, rsvd_hugepage))
		return NO_RESERVATIONS;
	if (!bpf_core_field_exists(struct file_region, css) ||
	    !bpf_core_field_exists(struct resv_map, css))
		return NO_REGION_OWNER;
	if (!bpf_core_field_exists(struct address_space, i_private_data) &&
	    !bpf_core_field_exists(struct address_space___private, private_data))
		return NO_RESERVE_MAP;
	if (!bpf_core_field_exists(struct dentry, d_u.d_alias) &&
	    !bpf_core_field_exists(struct dentry___alias, d_alias))
		return NO_ALIASES;
	return NOTHING;
}

SEC("syscall")
int read_charges(void *unused)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state **states;
	struct file_system_type *type;

	run.missing = missing_in_kernel();
	if (run.missing)
		return 0;
	type = hugetlbfs(task);
	states = (void *)set + bpf_core_field_offset(struct css_set, subsys);
	root = 0;
	bpf_probe_read_kernel(&root, sizeof root,
			      states + bpf_core_enum_value(enum cgroup_subsys_id, hugetlb_cgrp_id));
	if (!type || !root) {
		run.missing = NO_ANCHOR;
		return 0;
	}
	bpf_loop(MOST_LEVELS, find_root, 0, 0);
	controller = BPF_CORE_READ(root, ss);
	deadline = bpf_ktime_get_ns() + MOST_NANOSECONDS;
	number++;
	run.torn = run.sizes = 0;
	run.rows = run.inodes = run.areas = 0;
	__builtin_memset(run.listed, 0, sizeof run.listed);
	sizes = 0;

	super_position = BPF_CORE_READ(type, fs_supers.first);
	bpf_loop(MOST_SUPERS, find_sizes, 0, 0);
	if (run.torn)
		return 0;
	if (!run.sizes || run.sizes > SIZES) {
		run.missing = TOO_MANY_SIZES;
		return 0;
	}
	bpf_loop(SIZES, count_before, 0, 0);
	super_position = BPF_CORE_READ(type, fs_supers.first);
	if (bpf_loop(MOST_SUPERS, one_super, 0, 0) >= MOST_SUPERS)
		torn(OUT_OF_BOUNDS);
	if (!run.torn)
		bpf_loop(SIZES, count_after, 0, 0);
	return 0;
}
