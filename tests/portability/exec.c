/* SPDX-License-Identifier: Apache-2.0 */
/* Criterion runs each test in a process of its own, for which it executes its program again. The
 * kernel can execute none of a foreign processor; the emulator can. Criterion finds this function
 * in the program before that of the C library. */
#include <errno.h>
#include <stddef.h>
#include <unistd.h>

#pragma GCC visibility push(default)
int execve(const char *path, char *const argv[], char *const envp[])
{
    char *emulated[] = {(char *)"qemu-aarch64-static", (char *)path, NULL};

    /* Criterion gives its program no arguments. */
    if (argv[0] && argv[1]) {
        errno = E2BIG;
        return -1;
    }
    return execvpe(emulated[0], emulated, envp);
}
#pragma GCC visibility pop
