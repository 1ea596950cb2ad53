/* Preloaded into a broker by a test: fdatasync and fsync wait for as long as the file SLOW_SYNC_WHILE is there. A disk that
 * is alive and does not come to an end, until the test lets it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_test(void)
{
    const char *gate = getenv("SLOW_SYNC_WHILE");
    struct timespec step = {0, 1000000};
    while (gate && access(gate, F_OK) == 0)
        nanosleep(&step, NULL);
}

int fdatasync(int file)
{
    static int (*real)(int);
    wait_for_the_test();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    return real(file);
}

int fsync(int file)
{
    static int (*real)(int);
    wait_for_the_test();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    return real(file);
}
