/* The reader's process: loads the BPF program, and answers the requests on its standard input.
 *
 * The process needs CAP_BPF and CAP_PERFMON, and first gives up all other rights. It opens only the
 * kernel's BTF and a memfd. Each request is one byte. The process ends when its input ends, or when
 * its parent ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "rows.h"
#include "reader.skel.h"

#define NOBODY 65534
#define KEPT (1ULL << CAP_BPF | 1ULL << CAP_PERFMON)
#define VERIFIER_LOG (1 << 20)
#define BTF "/sys/kernel/btf/vmlinux"

/* The size of the buffer for rows in bytes. A list of a million regions takes 48 MiB. */
#define LEAST_BUFFER (1U << 22)
#define MOST_BUFFER (1U << 29)
/* The most walks, and seconds, for one answer. A walk is repeated if it was torn, or if counters
 * changed.
 */
#define MOST_READS 8
#define MOST_SECONDS 2.0

static struct reader_bpf *program;
static struct ring_buffer *ring;
static unsigned int buffer = LEAST_BUFFER;
static int anchor = -1;
static char sentence[1024];

/* Sets the sentence of an error; returns -1. */
static int fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(sentence, sizeof sentence, format, arguments);
	va_end(arguments);
	return -1;
}

/* --- the pipe --- */

static void put(const void *bytes, size_t length)
{
	while (length) {
		ssize_t written = write(STDOUT_FILENO, bytes, length);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			exit(0); /* the parent no longer reads */
		bytes = (const char *)bytes + written;
		length -= written;
	}
}

/* --- rows --- */

struct section {
	char *bytes;
	size_t length, room;
};

/* Section n has the rows of kind n + 1; the last section has the names. */
static struct section sections[SECTIONS];
static int discarding;

static void append(struct section *to, const void *bytes, size_t length)
{
	if (to->length + length > to->room) {
		to->room = to->room ? to->room * 2 : 1 << 16;
		to->bytes = realloc(to->bytes, to->room);
		if (!to->bytes)
			abort(); /* the parent starts another reader later */
	}
	memcpy(to->bytes + to->length, bytes, length);
	to->length += length;
}

static void append_named(struct section *to, const void *row, size_t head, __u64 *name_at,
			 const char *name, size_t length)
{
	struct section *names = &sections[KINDS];

	*name_at = names->length;
	append(to, row, head);
	append(names, name, length);
}

static int on_row(void *unused, void *data, size_t length)
{
	struct header *header = data;
	struct section *to = &sections[header->kind - 1];

	if (discarding)
		return 0;
	/* The ring buffer is read-only, so copy the row before name_at is set. */
	if (header->kind == ROW_NODE) {
		struct node_row row;

		memcpy(&row, data, length);
		append_named(to, &row, offsetof(struct node_row, name), &row.name_at, row.name,
			     row.name_length);
	} else if (header->kind == ROW_CGROUP) {
		struct cgroup_row row;

		memcpy(&row, data, length);
		append_named(to, &row, offsetof(struct cgroup_row, name), &row.name_at, row.name,
			     header->index);
	} else {
		append(to, data, length);
	}
	return 0;
}

static void answer(enum status status, unsigned int reads, double seconds)
{
	struct answer head = {
		.magic = MAGIC,
		.protocol = PROTOCOL,
		.status = status,
		.reads = reads,
		.nanoseconds = seconds * 1e9,
	};

	if (status == ERROR)
		head.bytes = strlen(sentence);
	put(&head, sizeof head);
	if (status == ERROR)
		put(sentence, head.bytes);
}

static int at_rest(const struct run *run)
{
	for (unsigned int each = 0; each < run->sizes; each++)
		if (run->before[each] != run->after[each] || run->listed[each] != run->after[each])
			return 0;
	return 1;
}

static void answer_rows(const struct run *run, unsigned int reads, double seconds)
{
	__u64 lengths[SECTIONS];
	struct answer head = {
		.magic = MAGIC,
		.protocol = PROTOCOL,
		.status = at_rest(run) ? REST : MOVED,
		.bytes = sizeof lengths,
		.reads = reads,
		.left_out = run->areas > MOST_AREAS,
		.nanoseconds = seconds * 1e9,
	};

	discarding = 0;
	ring_buffer__consume(ring);
	for (int each = 0; each < SECTIONS; each++) {
		lengths[each] = sections[each].length;
		head.bytes += lengths[each];
	}
	put(&head, sizeof head);
	put(lengths, sizeof lengths);
	for (int each = 0; each < SECTIONS; each++) {
		put(sections[each].bytes, sections[each].length);
		free(sections[each].bytes);
		sections[each] = (struct section){0};
	}
}

/* --- rights --- */

static int hold_capabilities(unsigned long long kept)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {
		{.effective = kept, .permitted = kept},
		{.effective = kept >> 32, .permitted = kept >> 32},
	};

	return syscall(SYS_capset, &header, data);
}

/* Gives up root and all capabilities except CAP_BPF and CAP_PERFMON, for good. */
static int drop_rights(void)
{
	pid_t parent = getppid();

	/* Without CAP_SETPCAP the bounding set stays. no_new_privs makes the set useless. */
	for (int each = 0; each <= CAP_LAST_CAP; each++)
		if (!(KEPT >> each & 1))
			prctl(PR_CAPBSET_DROP, each, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (geteuid() == 0) {
		prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
		if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
		    setresuid(NOBODY, NOBODY, NOBODY))
			return fail("The reader can't become user %d (%s): start it as a user other than"
				    " root, or with CAP_SETUID and CAP_SETGID.",
				    NOBODY, strerror(errno));
		prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	}
	if (hold_capabilities(KEPT))
		return fail("The reader needs both CAP_BPF and CAP_PERFMON (%s): add them to the"
			    " container's capabilities.",
			    strerror(errno));
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	/* Set this after the change of user, which clears it. The parent may have ended before. */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (getppid() != parent)
		exit(0);
	return 0;
}

/* --- the BPF program --- */

/* The last warning of libbpf. */
static char warning[512];

static int on_print(enum libbpf_print_level priority, const char *format, va_list arguments)
{
	if (priority == LIBBPF_WARN) {
		vsnprintf(warning, sizeof warning, format, arguments);
		warning[strcspn(warning, "\n")] = 0;
	}
	return 0;
}

/* Loads the program again, and returns the verifier's log of some hundred kilobytes. Only a failed
 * load needs the log.
 */
static char *verifier_log(void)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .kernel_log_size = VERIFIER_LOG);
	char *log = options.kernel_log_buf = calloc(1, VERIFIER_LOG);
	struct reader_bpf *again = log ? reader_bpf__open_opts(&options) : NULL;

	if (again)
		reader_bpf__load(again);
	reader_bpf__destroy(again);
	return log;
}

/* Returns 1 if the verifier's log says that the kernel lacks this helper, in the words of older or
 * of newer kernels.
 */
static int lacks(const char *log, const char *helper)
{
	char phrase[64];

	snprintf(phrase, sizeof phrase, "unknown func %s", helper);
	if (strstr(log, phrase))
		return 1;
	snprintf(phrase, sizeof phrase, "cannot use helper %s", helper);
	return strstr(log, phrase) != NULL;
}

static int why_not_loaded(int error)
{
	char *log;

	if (error == -EPERM || error == -EACCES)
		return fail("The kernel refuses to load the reader (%s): the reader needs CAP_BPF and"
			    " CAP_PERFMON, and a seccomp profile that allows bpf(2) with these.",
			    strerror(-error));
	log = verifier_log();
	if (log && (lacks(log, "bpf_loop") || strstr(log, "invalid func unknown#181")))
		fail("This kernel has no bpf_loop, which came with Linux 5.17.");
	else if (log && lacks(log, "bpf_probe_read"))
		/* libbpf uses the older bpf_probe_read if the kernel has no bpf_probe_read_kernel. The
		 * log is the only evidence: a container does not see /sys/kernel/security.
		 */
		fail("This kernel lets no program read its memory: it is locked down for confidentiality"
		     " (see /sys/kernel/security/lockdown).");
	else
		fail("The kernel does not accept the reader (%s): %s", strerror(-error), warning);
	free(log);
	return -1;
}

static void unload(void)
{
	ring_buffer__free(ring);
	reader_bpf__destroy(program);
	ring = NULL;
	program = NULL;
}

static int load(void)
{
	int error;

	if (access(BTF, R_OK))
		return fail("This kernel has no BTF at %s (%s); run a kernel with"
			    " CONFIG_DEBUG_INFO_BTF=y.",
			    BTF, strerror(errno));
	warning[0] = 0;
	program = reader_bpf__open();
	if (!program)
		return fail("The reader's BPF program can't be opened (%s): %s", strerror(errno), warning);
	bpf_map__set_max_entries(program->maps.rows, buffer);
	error = reader_bpf__load(program);
	if (error) {
		why_not_loaded(error);
		unload();
		return -1;
	}
	ring = ring_buffer__new(bpf_map__fd(program->maps.rows), on_row, NULL, NULL);
	if (!ring) {
		unload();
		return fail("The buffer of %u MiB for rows can't be mapped (%s).", buffer >> 20,
			    strerror(errno));
	}
	program->bss->run.anchor = anchor;
	return 0;
}

static int why_missing(enum missing missing)
{
	static const char *const sentences[] = {
		[NO_CONTROLLER] = "This kernel has no hugetlb cgroup controller (CONFIG_CGROUP_HUGETLB).",
		[NO_RESERVATIONS] = "This kernel does not count reservations of huge pages by cgroup, which"
				    " came with Linux 5.7.",
		[NO_REGION_OWNER] = "This kernel's file_region or resv_map has no css, which names the"
				    " charged cgroup.",
		[NO_RESERVE_MAP] = "This kernel's address_space has neither i_private_data nor private_data,"
				   " which holds the reserve map.",
		[NO_ALIASES] = "This kernel's dentry has no d_alias, which leads from a file to its name.",
		[NO_ANCHOR] = "The reader's own memfd is not on a hugetlbfs that the reader can find.",
		[TOO_MANY_SIZES] = "This kernel has no internal hugetlbfs, or more than 16 page sizes.",
	};

	return fail("%s", sentences[missing]);
}

/* --- a request --- */

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void discard(void)
{
	discarding = 1;
	ring_buffer__consume(ring);
}

/* Loads the program again with a buffer of twice the size. */
static int enlarge_buffer(void)
{
	if (buffer >= MOST_BUFFER)
		return fail("The charge list takes more than %u MiB.", MOST_BUFFER >> 20);
	buffer *= 2;
	unload();
	return load();
}

static const char *why_torn(enum torn torn)
{
	switch (torn) {
	case BROKEN_LINK:
		return "a link of a list did not lead back";
	case FOREIGN:
		return "an object belonged to another object than expected";
	case OUT_OF_ORDER:
		return "regions were out of order";
	case OUT_OF_BOUNDS:
		return "a number was out of bounds";
	case TOO_LONG:
		return "the walk took longer than a second";
	default:
		return "the rows did not fit the buffer";
	}
}

static void read_charges(void)
{
	LIBBPF_OPTS(bpf_test_run_opts, options);
	double begun = now();
	unsigned int reads = 0, full = 0;
	struct run *run;
	int error;

	for (;;) {
		run = &program->bss->run;
		error = bpf_prog_test_run_opts(bpf_program__fd(program->progs.read_charges), &options);
		reads++;
		if (error || run->missing) {
			if (error)
				fail("The kernel does not run the reader: %s.", strerror(-error));
			else
				why_missing(run->missing);
			break;
		}
		/* A walk that follows a wrong link may fill any buffer. So only a buffer that is full
		 * twice is too small.
		 */
		if (run->torn == FULL && full++) {
			full = 0;
			/* The new program starts with an empty buffer. */
			if (enlarge_buffer())
				break;
			continue;
		}
		int last = reads >= MOST_READS || now() - begun > MOST_SECONDS;

		/* If mappings are left out, another walk gives no better sums. */
		if (!run->torn && (last || at_rest(run) || run->areas > MOST_AREAS)) {
			answer_rows(run, reads, now() - begun);
			return;
		}
		discard();
		if (last) {
			fail("The charge list changed during each of %u reads; the last read was torn: %s.",
			     reads, why_torn(run->torn));
			break;
		}
	}
	answer(ERROR, reads, now() - begun);
}

int main(void)
{
	char request;
	ssize_t got;

	libbpf_set_print(on_print);
	if (drop_rights())
		goto failed;
	/* The memfd is empty, so it takes no page. */
	anchor = memfd_create("hugetlb-quota-reader", MFD_CLOEXEC | MFD_HUGETLB);
	if (anchor < 0) {
		fail("This kernel can't create a hugetlb memfd (%s): it lacks CONFIG_HUGETLBFS.",
		     strerror(errno));
		goto failed;
	}
	if (load())
		goto failed;
	answer(READY, 0, 0);
	while ((got = read(STDIN_FILENO, &request, 1)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return 1;
		if (request == REQUEST) {
			if (!program && load())
				answer(ERROR, 0, 0);
			else
				read_charges();
		} else {
			fail("The reader does not understand request 0x%02x.", (unsigned char)request);
			answer(ERROR, 0, 0);
		}
	}
	return 0;
failed:
	answer(ERROR, 0, 0);
	return 1;
}
