/* Preloaded into a broker by a test: from the FAIL_SYNC_AFTER-th call on, every FAIL_SYNC_EVERY-th (default 5th)
 * fdatasync or fsync fails with EIO without reaching the system. Each failure appends a line to the file
 * FAIL_SYNC_LOG, if set, so that the test knows when the first one was. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong calls;

static unsigned long number(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);
    unsigned long value = text ? strtoul(text, NULL, 10) : 0;
    return value ? value : otherwise;
}

static int fails(const char *what)
{
    unsigned long call = atomic_fetch_add(&calls, 1) + 1;
    if (call < number("FAIL_SYNC_AFTER", 1) || call % number("FAIL_SYNC_EVERY", 5) != 0)
        return 0;
    const char *path = getenv("FAIL_SYNC_LOG");
    if (path) {
        int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (file >= 0) {
            struct timespec now;
            char line[96];
            clock_gettime(CLOCK_REALTIME, &now);
            int bytes = snprintf(line, sizeof line, "%s %lu %lld.%09ld\n", what, call, (long long)now.tv_sec, now.tv_nsec);
            if (write(file, line, (size_t)bytes) < 0)
                perror("fail_sync");
            close(file);
        }
    }
    errno = EIO;
    return 1;
}

int fdatasync(int file)
{
    static int (*real)(int);
    if (fails("fdatasync"))
        return -1;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    return real(file);
}

int fsync(int file)
{
    static int (*real)(int);
    if (fails("fsync"))
        return -1;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    return real(file);
}
