#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Holds #include lines against the layers of the program.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# Layers that a layer may use, itself apart: the table in CONTRIBUTING.md.
uses()
{
    local low="base numeric place checkpoint layout" packs="pack experts"

    case $1 in
    base) ;;
    numeric | place) echo base ;;
    checkpoint | layout) echo base numeric ;;
    pack) echo "$low" ;;
    experts) echo "$low" pack ;;
    run) echo base numeric checkpoint ;;
    write) echo "$low" "$packs" run ;;
    verify) echo "$low" "$packs" forward ;;
    delta) echo "$low" "$packs" run write verify ;;
    forward) echo "$low" "$packs" ;;
    diff) echo "$low" "$packs" forward ;;
    engine) echo "$low" "$packs" ;;
    synth) echo "$low" ;;
    bench) echo base numeric ;;
    *) return 1 ;;
    esac
}

# The layer that a public header belongs to.
header_layer()
{
    case $1 in
    store | model | snapshot) echo checkpoint ;;
    artifact) echo pack ;;
    work) echo run ;;
    pack | compress) echo write ;;
    *) echo "$1" ;;
    esac
}

# The files' own includes, "FILE HEADER" a line. Headers of the system and of other
# libraries have no slash or one that is not ours.
own_includes()
{
    grep -HoE '^[[:space:]]*#[[:space:]]*include[[:space:]]+("[^"]+"|<moepack/[^>]+>)' "$@" |
        sed -E 's/:[^"<]*["<]([^">]+)[">]/ \1/'
}

# Prints the includes of files that stand for a layer and reach a forbidden one.
forbidden()
{
    local layer=$1 allowed file header target
    shift
    allowed=" $layer $(uses "$layer") "

    own_includes "$@" | while read -r file header; do
        case $header in
        moepack/*) target=$(basename "$header" .h) && target=$(header_layer "$target") ;;
        */*) target=${header%%/*} ;;
        *) target=$layer ;;
        esac
        case $allowed in
        *" $target "*) ;;
        *) echo "$file includes $header" ;;
        esac
    done
}

cd "$ROOT" || exit 1

for folder in lib/*/; do
    [ "$folder" != lib/loaders/ ] || continue # Python, which includes nothing
    layer=$(basename "$folder")
    it "keeps lib/$layer to the layers below it"
    uses "$layer" >/dev/null
    assert $? "lib/$layer is no layer that this test knows"
    assert_equal "$(cd "$ROOT" && forbidden "$layer" "$folder"*.[ch])" ''
done

for header in $(cd "$ROOT" && ls include/moepack/*.h); do
    name=$(basename "$header" .h)
    [ "$name" != moepack ] || continue
    it "keeps moepack/$name.h to the layers below it"
    assert_equal "$(cd "$ROOT" && forbidden "$(header_layer "$name")" "$header")" ''
done

it "keeps lib/verify from what it is to check"
assert_equal "$(cd "$ROOT" && own_includes lib/verify/*.[ch] | grep -E ' (run|write)/| moepack/(pack|work).h')" ''

it "gives commands the public headers, and those of what is linked into the program alone"
assert_equal "$(cd "$ROOT" && own_includes cmd/*.[ch] | while read -r file header; do
    case $header in
    moepack/*.h | engine/*.h | synth/*.h | bench/*.h) ;;
    *) [ -f "cmd/$header" ] || echo "$file includes $header" ;;
    esac
done)" ''

# The texts of the table of suffixes, quotes and all.
suffixes()
{
    sed -nE 's/.*\[MP_SUFFIX_[A-Z0-9_]+\] = \{("[._][^"]+").*/\1/p' lib/checkpoint/conventions.c
}

it "keeps suffixes of tensors to the table of conventions"
assert_equal "$(cd "$ROOT" && suffixes | grep -c '"\.weight_scale_inv"')" 1
assert_equal "$(cd "$ROOT" && suffixes >"$OLDPWD/suffixes" &&
    grep -HnF -f "$OLDPWD/suffixes" lib/*/*.c | grep -v '^lib/checkpoint/conventions\.c:')" ''

it "keeps files below 800 lines"
assert_equal "$(cd "$ROOT" && find cmd include lib tests -name '*.[ch]' -exec wc -l {} + |
    awk '$2 != "total" && $1 > 800')" ''

finish
