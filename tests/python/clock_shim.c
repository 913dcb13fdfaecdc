/* LD_PRELOAD: the wall clock of a process is CLOCK_OFFSET_S seconds off. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    const char *offset = getenv("CLOCK_OFFSET_S");
    if (result == 0 && clock == CLOCK_REALTIME && offset) {
        now->tv_sec += atol(offset);
        if (now->tv_sec < 0)
            now->tv_sec = 0;
    }
    return result;
}
