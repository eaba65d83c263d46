#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Prints "FORM TARGET DIGEST" for every pack that every_pack.sh makes: a digest of the names
# and bytes of all its files. Nothing a pack holds depends on where it is made, so that two
# programs print the same exactly if they pack alike:
#
#     digests.sh MOEPACK DIR >before
#
# Writes below DIR, which should be in memory. Exits 1 if a pack is not made.
set -u

# shellcheck source=tests/tools/every_pack.sh
. "$(dirname "$0")/every_pack.sh"

digests()
{
    local form=$1-$2-$3 target

    while read -r _ target; do
        echo "$form" "$target" "$(cd "$form-$target" && find . -type f -print0 |
            sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)"
    done <target_list
}

every_form digests | sort
[ ! -e failed ]
