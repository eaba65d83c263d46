/* SPDX-License-Identifier: Apache-2.0 */
/* Knows what is the same for all commands: how one is started, how its error is
 * printed, and the exit status. */
#include "commands.h"
#include "help.h"
#include "output.h"
#include "progress.h"

#include <fcntl.h>
#include <moepack/numeric.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static int exit_status(int code)
{
    if (code == MP_ERR_CANCELLED)
        return 128 + cancel_signal();
    return -code;
}

/* Prints the error, if it says anything, and gives the exit status.
 * name: of the command, or null for moepack itself. */
static int report(const char *name, const mp_error *err)
{
    const char *colon = name ? ": " : "";
    const char *space = name ? " " : "";

    if (!name)
        name = "";
    if (err->message[0] != '\0')
        fprintf(stderr, "moepack%s%s: %s\n", colon, name, err->message);
    if (err->code == MP_ERR_USAGE)
        fprintf(stderr, "try 'moepack%s%s --help'\n", space, name);
    return exit_status(err->code);
}

/* Closes standard output after all was well so far. */
static int finish(const char *name)
{
    mp_error err = {0};

    return close_stdout(&err) == 0 ? 0 : report(name, &err);
}

/* Runs the command with values as room for its options. */
static int run_with(const command *cmd, int argc, char **argv, void *values)
{
    mp_error err = {0};
    bool help;

    int code = options_parse(cmd, argc, argv, values, &help, &err);
    if (code == 0 && help)
        help_command(stdout, cmd);
    else if (code == 0 && (!cmd->computes || (code = mp_kernels_check(&err)) == 0))
        code = cmd->run(values, &err);
    options_release(cmd, values);
    progress_clear();
    if (code == 0)
        return finish(cmd->name);

    mp_error output_err = {0};
    err.code = code;
    /* The command's own failure counts, but lost output is told all the same. */
    if (close_stdout(&output_err) != 0)
        report(cmd->name, &output_err);
    return report(cmd->name, &err);
}

static int run_command(const command *cmd, int argc, char **argv)
{
    mp_error err = {0};
    void *values = malloc(cmd->size);

    if (!values) {
        cmd_fail(&err, MP_ERR_IO, "out of memory");
        return report(cmd->name, &err);
    }
    int status = run_with(cmd, argc, argv, values);
    free(values);
    return status;
}

/* A descriptor of 0, 1 or 2 that is closed would go to the next file opened, and
 * messages would end up in it. Reading from or writing to what is put there
 * instead fails. */
static void fill_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) == -1)
            _exit(-MP_ERR_IO);
    }
}

/* Large checkpoints have more shards than the usual soft limit of open files. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    mp_error err = {0};

    fill_standard_descriptors();
    raise_file_limit();
    if (argc < 2) {
        cmd_fail(&err, MP_ERR_USAGE, "no command given");
        return report(NULL, &err);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help_commands(stdout);
        return finish(NULL);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("moepack %s\n", mp_version());
        return finish(NULL);
    }
    const command *cmd = command_find(argv[1]);
    if (!cmd) {
        if (argv[1][0] == '-')
            cmd_fail(&err, MP_ERR_USAGE, "unknown option '%s'", argv[1]);
        else
            command_unknown(argv[1], &err);
        return report(NULL, &err);
    }
    return run_command(cmd, argc - 1, argv + 1);
}
