/* SPDX-License-Identifier: Apache-2.0 */
/* Knows which commands there are. */
#include "commands.h"

#include "nearest.h"
#include "output.h"

#include <string.h>

#define COMMAND_ADDRESS(name) &command_##name,
const command *const commands[] = {COMMAND_LIST(COMMAND_ADDRESS) NULL};

const command *command_find(const char *name)
{
    for (size_t i = 0; commands[i]; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

int command_unknown(const char *name, mp_error *err)
{
    nearest n;

    nearest_init(&n, name);
    for (size_t i = 0; commands[i]; i++)
        nearest_offer(&n, commands[i]->name);
    if (n.best)
        return cmd_fail(err, MP_ERR_USAGE, "'%s' is not a command; did you mean '%s'?", name,
                        n.best);
    return cmd_fail(err, MP_ERR_USAGE, "'%s' is not a command", name);
}
