/* A disk of BYTES in memory that logs what reaches it: serves one file, `disk`, below MOUNTPOINT through /dev/fuse, and
 * appends each write and each flush to LOG. A loop device over that file turns it into a block device, so that a file
 * system can be made on it and every moment of it be built again afterwards. Ends when it is unmounted. Needs root.
 *
 * A record of the log: u8 kind ('W' or 'F'), u64 CLOCK_MONOTONIC in ns, u64 position, u32 bytes, the bytes; all in the
 * machine's order. A record is in the log before the write or flush is answered. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define DISK 2
#define WRITE_BYTES_MAX (128 * 1024)

static char *disk;
static uint64_t disk_bytes;
static FILE *record;
static int fuse;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void append(char kind, uint64_t position, const void *bytes, uint32_t count)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t at = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (fwrite(&kind, 1, 1, record) != 1 || fwrite(&at, 8, 1, record) != 1 || fwrite(&position, 8, 1, record) != 1 ||
        fwrite(&count, 4, 1, record) != 1 || (count && fwrite(bytes, count, 1, record) != 1))
        fail("write the log");
}

static void answer(uint64_t unique, int error, const void *bytes, size_t count)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + count), .error = error, .unique = unique};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)bytes, count}};
    /* ENOENT: whoever asked does not wait any more. */
    if (writev(fuse, parts, count ? 2 : 1) < 0 && errno != ENOENT)
        fail("answer");
}

static struct fuse_attr attributes(uint64_t node)
{
    struct fuse_attr found = {.ino = node, .nlink = 1, .blksize = 4096};
    found.mode = node == DISK ? S_IFREG | 0600 : S_IFDIR | 0700;
    found.size = node == DISK ? disk_bytes : 0;
    found.blocks = found.size / 512;
    return found;
}

static void lookup(const struct fuse_in_header *header, const char *name)
{
    if (strcmp(name, "disk") != 0) {
        answer(header->unique, -ENOENT, NULL, 0);
        return;
    }
    struct fuse_entry_out found = {.nodeid = DISK, .attr_valid = 3600, .entry_valid = 3600, .attr = attributes(DISK)};
    answer(header->unique, 0, &found, sizeof found);
}

static void begin(const struct fuse_in_header *header)
{
    struct fuse_init_out terms = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = WRITE_BYTES_MAX,
        .flags = FUSE_BIG_WRITES,
        .max_background = 16,
        .congestion_threshold = 12,
        .max_write = WRITE_BYTES_MAX,
        .time_gran = 1,
    };
    answer(header->unique, 0, &terms, sizeof terms);
}

static void serve(const struct fuse_in_header *header, const char *body)
{
    switch (header->opcode) {
    case FUSE_INIT:
        begin(header);
        break;
    case FUSE_LOOKUP:
        lookup(header, body);
        break;
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out found = {.attr_valid = 3600, .attr = attributes(header->nodeid)};
        answer(header->unique, 0, &found, sizeof found);
        break;
    }
    case FUSE_OPEN: {
        struct fuse_open_out opened = {.fh = 1};
        answer(header->unique, 0, &opened, sizeof opened);
        break;
    }
    case FUSE_READ: {
        const struct fuse_read_in *read = (const void *)body;
        uint64_t from = read->offset < disk_bytes ? read->offset : disk_bytes;
        uint64_t count = read->size < disk_bytes - from ? read->size : disk_bytes - from;
        answer(header->unique, 0, disk + from, count);
        break;
    }
    case FUSE_WRITE: {
        const struct fuse_write_in *write = (const void *)body;
        if (write->offset > disk_bytes || write->size > disk_bytes - write->offset) {
            answer(header->unique, -ENOSPC, NULL, 0);
            break;
        }
        memcpy(disk + write->offset, body + sizeof *write, write->size);
        append('W', write->offset, body + sizeof *write, write->size);
        struct fuse_write_out written = {.size = write->size};
        answer(header->unique, 0, &written, sizeof written);
        break;
    }
    case FUSE_FSYNC:
        append('F', 0, NULL, 0);
        answer(header->unique, 0, NULL, 0);
        break;
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        answer(header->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break;
    default:
        answer(header->unique, -ENOSYS, NULL, 0);
    }
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fprintf(stderr, "blklog MOUNTPOINT LOG BYTES\n");
        return 2;
    }
    disk_bytes = strtoull(arguments[3], NULL, 10);
    disk = calloc(1, disk_bytes);
    record = fopen(arguments[2], "wb");
    fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (!disk || !record || fuse < 0)
        fail("begin");
    char options[96];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (mount("blklog", arguments[1], "fuse", MS_NOSUID | MS_NODEV, options) < 0)
        fail("mount");
    static char buffer[WRITE_BYTES_MAX + 8192];
    for (;;) {
        ssize_t taken = read(fuse, buffer, sizeof buffer);
        if (taken < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
            continue;
        if (taken < 0 && errno == ENODEV)
            break;
        if (taken < (ssize_t)sizeof(struct fuse_in_header))
            fail("read a request");
        serve((const void *)buffer, buffer + sizeof(struct fuse_in_header));
    }
    if (fclose(record) != 0)
        fail("close the log");
    return 0;
}
