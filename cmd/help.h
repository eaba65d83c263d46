/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/help.h - help texts, generated from the tables. */
#ifndef MOEPACK_CMD_HELP_H
#define MOEPACK_CMD_HELP_H

#include "options.h"

#include <stdio.h>

/* What `moepack --help` prints: the commands. */
void help_commands(FILE *out);

/* What `moepack COMMAND --help` prints: synopsis, summary, options. */
void help_command(FILE *out, const command *cmd);

/* One option's help with its choices and default, as help_command prints it. */
#define OPTION_TEXT 1024
void help_option_text(const cmd_option *option, const void *defaults, char text[OPTION_TEXT]);

#endif
