#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every family can be packed for every target, at the price that moepack-layouts(7) says.

# Thousands of small files, each synced: in memory, where there is such a place.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# Rows of the table in the manual page, which stand between two comments.
documented()
{
    sed -n '/^\.\\" pairs: begin/,/^\.\\" pairs: end/{/^\.\\"/!p}' "$ROOT/man/moepack-layouts.7"
}

it "packs and verifies all families for all targets, as the manual page has it"
run bash "$ROOT/tests/tools/pairs.sh" "$MOEPACK" "$PWD/pairs"
assert_status 0
assert_stderr_is ''
documented >expected
assert_file_is "$stdout" <expected

# A program that packs or verifies one of them otherwise than asked.
broken()
{
    cat >moepack
    chmod +x moepack
    run bash "$ROOT/tests/tools/pairs.sh" "$PWD/moepack" "$PWD/pairs"
    assert_status 1
}

it "notices a pack that is refused"
broken <<END
#!/bin/sh
case "\$*" in
*--list*) exec "$MOEPACK" "\$@" --family gpt_oss ;;
repack*fuseep-2*) echo "refused" >&2 && exit 5 ;;
*) exec "$MOEPACK" "\$@" ;;
esac
END
assert_stderr_has 'pairs: refused'

it "notices a pack of other weights"
broken <<END
#!/bin/sh
case "\$*" in
*--list*) exec "$MOEPACK" "\$@" --family gpt_oss ;;
synth*) "$MOEPACK" "\$@" && exec "$MOEPACK" "\$@" --seed 1 -o "\$3.other" ;;
repack*megamoe-bf16*) source=\$2 && shift 2 && exec "$MOEPACK" repack "\$source.other" "\$@" ;;
*) exec "$MOEPACK" "\$@" ;;
esac
END
assert_stderr_has 'as megamoe-bf16: '

# digests FILE SEED: of the packs of one family, whose weights come from SEED.
digests()
{
    printf '#!/bin/sh\ncase "$*" in\n*--list*) exec "%s" "$@" --family gpt_oss ;;\n%s\nesac\n' \
        "$MOEPACK" "synth*) exec '$MOEPACK' \"\$@\" --seed $2 ;; *) exec '$MOEPACK' \"\$@\" ;;" \
        >moepack
    chmod +x moepack
    run bash "$ROOT/tests/tools/digests.sh" "$PWD/moepack" "$PWD/$1.d"
    assert_status 0
    assert_stderr_is ''
    cp "$stdout" "$1"
}

it "gives one digest for packs of the same bytes, and another for other bytes"
digests here 1
digests there 1
digests other 2
assert_file_is there <here
assert_equal "$(wc -l <here)" "$(($(moepack synth --list --family gpt_oss | wc -l) * 9))"
assert_equal "$(cut -d ' ' -f 3 here other | sort -u | wc -l)" $((2 * $(wc -l <here)))

finish
