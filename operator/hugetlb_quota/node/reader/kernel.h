/* The kernel's types, with only the members that the reader needs.
 *
 * libbpf finds each member by name in the running kernel's BTF (CO-RE). So the order of the members
 * does not matter, missing members do not matter, and the build needs no BTF of a kernel. A type
 * with ___ in its name is the same type in another kernel version.
 */
#ifndef HUGETLB_QUOTA_KERNEL_H
#define HUGETLB_QUOTA_KERNEL_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right, *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

typedef struct {
	__s64 counter;
} atomic64_counter;

struct page_counter {
	atomic64_counter usage;
};

struct kernfs_node {
	const char *name;
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys *ss;
	struct cgroup_subsys_state *parent;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
};

/* The kernel has one counter of each kind for each page size. The reader takes only the offset of
 * the first, and adds the index.
 */
struct hugetlb_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter hugepage[1];
	struct page_counter rsvd_hugepage[1];
};

struct hstate {
	unsigned int order;
	unsigned long nr_huge_pages;
	struct list_head hugepage_activelist;
};

struct file_region {
	struct list_head link;
	long from, to;
	struct cgroup_subsys_state *css;
};

struct resv_map {
	struct list_head regions;
	struct cgroup_subsys_state *css;
};

struct hugetlbfs_sb_info {
	struct hstate *hstate;
};

struct qstr {
	const unsigned char *name;
};

struct super_block;
struct inode;

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	union {
		struct hlist_node d_alias;
	} d_u;
};

/* For kernels in which d_alias is not in the union. */
struct dentry___alias {
	struct hlist_node d_alias;
};

struct address_space {
	struct inode *host;
	struct rb_root_cached i_mmap;
	unsigned long nrpages;
	void *i_private_data;
};

/* Until 6.7. */
struct address_space___private {
	void *private_data;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_nlink;
	long long i_size;
	struct list_head i_sb_list;
	struct hlist_head i_dentry;
	struct address_space i_data;
};

struct file_system_type {
	struct hlist_head fs_supers;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_flags;
	long long s_maxbytes;
	unsigned long s_blocksize;
	unsigned long s_magic;
	struct file_system_type *s_type;
	struct hlist_node s_instances;
	void *s_fs_info;
	struct list_head s_inodes;
};

struct file {
	struct inode *f_inode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	struct files_struct *files;
	struct css_set *cgroups;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_flags, vm_pgoff;
	struct file *vm_file;
	void *vm_private_data;
	struct {
		struct rb_node rb;
	} shared;
};

struct page {
	unsigned long private;
};

struct folio {
	struct list_head lru;
	struct address_space *mapping;
	void *_hugetlb_cgroup_rsvd;
};

#pragma clang attribute pop

enum cgroup_subsys_id {
	hugetlb_cgrp_id = 1,
};

#endif
