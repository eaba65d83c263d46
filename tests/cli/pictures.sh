#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What people look at: inspect --svg and verify --html, by what a parser reads in them, and by what
# a browser makes of them where chromium is here.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# H = 384, I = 256, 5 experts and a shared one, layers "layers.0" and "mtp.0"; on two ranks 3 slots
# each. The slots of layers.0 hold the experts 4 0 2 and 1 3 2.
source=$ROOT/testdata/fixtures/v4-fp4
moepack repack "$source" --target megamoe-w4a8 --ep 2 --placement "$source/placement.json" \
    --shared separate --requantize-shared -q -o "$WORK/sound" || exit 1
pack=$WORK/sound

# parsed FILE EXPRESSION: what Python prints of an XML file, whose elements are all in `of(name)`.
# A file that loads or runs anything is not read.
parsed()
{
    python3 -c '
import sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
everything = [(e.tag.split("}")[1], e) for e in root.iter()]
assert not {name for name, _ in everything} & {"script", "link", "img", "image", "use", "iframe", "object"}
assert not any("href" in key or "src" in key or key.startswith("on") for _, e in everything for key in e.attrib)
def of(name):
    return [e for n, e in everything if n == name]
def text(e):
    return "".join(e.itertext())
assert "prefers-color-scheme: dark" in text(of("style")[0])
print(eval(sys.argv[2]))' "$@" 2>&1
}

# The area of all rectangles of a class, in cells of 28 by 28 pixels.
area='sum(int(w) * int(h) for e in of("path") if e.get("class") == "%s"
    for w, h in __import__("re").findall(r"h(\d+)v(\d+)h", e.get("d"))) / 28 / 28'

it "draws a pack: a cell for every slot, in the color of what it holds"
run moepack inspect "$pack" --svg pack.svg -q
assert_status 0
assert_stderr_is ''
assert_equal "$(parsed pack.svg 'text(of("title")[0])')" \
    'megamoe-w4a8: 2 ranks of 3 slots, 5 experts as 6 physical'
for of in once:8.0 copies:4.0 shared:4.0; do
    # shellcheck disable=SC2059
    assert_equal "$of $(parsed pack.svg "$(printf "$area" "${of%:*}")")" "$of ${of#*:}"
done

it "writes the number of its expert into every cell, and the shared one last"
moepack inspect "$pack" --svg - -q | sed '/<\/svg>/q' >pack.svg
assert_equal "$(parsed pack.svg '[text(e) for e in of("text") if e.get("class") == "middle"][:8]')" \
    "['4', '0', '2', '5', '1', '3', '2', '5']"
assert_equal "$(parsed pack.svg '[text(e) for e in of("text") if e.get("class") == "end"]')" "['layers.0', 'mtp.0']"

it "draws the bytes of the ranks that are here"
moepack repack "$source" --target megamoe-w4a8 --ep 5 --ranks 3 -q -o part
run moepack inspect part --svg part.svg -q
assert_status 0
bytes=$(moepack inspect part --json | jq '[.layers[].bytes] | add')
assert_equal "$(parsed part.svg '[e.get("class") for e in of("path")][-5:]')" \
    "['frame', 'frame', 'frame', 'bar', 'frame']"
assert_equal "$(parsed part.svg 'text(of("title")[4])')" "rank 3: $bytes bytes"

it "draws as many layers and ranks as there are"
moepack synth -q --family qwen3_moe --hidden 32 --intermediate 32 --experts 60 --layers 70 --top-k 2 \
    --vocab 16 -o many
moepack repack many --target deepep-bf16 --ep 30 -q -o wide
run moepack inspect wide --svg wide.svg -q
assert_status 0
assert_equal "$(parsed wide.svg 'len([e for e in of("path") if e.get("class") == "bar"])')" 30
assert_equal "$(parsed wide.svg "$(printf "sum(int(h) for e in of('path') if e.get('class') == 'once'
    for w, h in __import__('re').findall(r'h(\\\\d+)v(\\\\d+)h', e.get('d')))")")" $((70 * 30 * 8))

it "draws no checkpoint, and no broken pack"
run moepack inspect "$source" --svg x.svg
assert_status 2
assert_stderr_has '--svg is for packs'
cp -r "$pack" out
truncate -s -1 out/rank-001/model-00001-of-00001.safetensors
run moepack inspect out --svg x.svg
assert_status 3
assert_equal "$(ls)" out
run moepack inspect "$pack" --svg no/such/x.svg
assert_status 4
assert_stderr_has 'cannot write "no/such/x.svg": No such file or directory'

# ---------------------------------------------------------------------------
# The report of verify
# ---------------------------------------------------------------------------

# A pack with a byte of rank 1 changed, under a name that a page must not take at its word.
odd_name='<b>&"odd'$'\t''name"'
break_pack()
{
    local file=$1/rank-001/model-00001-of-00001.safetensors at byte

    at=$(($(stat -c %s "$file") - 5))
    byte=$(od -An -t u1 -j "$at" -N 1 "$file")
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ 1)))" | dd of="$file" bs=1 seek="$at" conv=notrunc status=none
}

it "writes a page of a sound pack"
run moepack verify "$pack" --source "$source" --level numeric --html report.html
assert_status 0
assert_equal "$(parsed report.html 'text(of("p")[0])')" \
    "$(sed -n 's/^ok: numeric: \([0-9]* files, [0-9]* tensors, [0-9]* slots, .*\)/ok: level numeric, \1/p' "$stdout"); moepack $(moepack --version | sed 's/.* //')"
assert_equal "$(parsed report.html '[text(e) for e in of("h2")]')" \
    "['What the kernel computes, beside the source', 'Parts']"
assert_equal "$(parsed report.html '{text(e) for e in of("td") if "number good" == e.get("class")}')" "{'0'}"

it "writes the faults into the page, and no markup of theirs"
cp -r "$pack" "$odd_name"
break_pack "$odd_name"
run moepack verify "$odd_name" --source "$source" --html report.html --json
assert_status 1
assert_equal "$(parsed report.html 'text(of("h1")[0])')" '<b>&"odd?name"'
assert_equal "$(parsed report.html 'len(of("b"))')" 0
jq -r '.faults[].detail' "$stdout" >details
parsed report.html '"\n".join(text(e) for e in of("td") if e.get("class") == "detail")' >found
assert_file_is found "$(cat details)"
assert_equal "$(parsed report.html 'text(of("strong")[0])')" FAILED

it "reports a page that cannot be written"
run moepack verify "$pack" --html no/such/report.html
assert_status 4
assert_stderr_is 'moepack: verify: cannot write "no/such/report.html": No such file or directory'
run moepack verify "$pack" --html /dev/full
assert_status 4
assert_stderr_is 'moepack: verify: cannot write "/dev/full": No space left on device'

# ---------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------

# shot PAGE SCHEME: "COLOR N" of a screenshot, the color of its corner and the number of colors.
# Schemes are numbers of the browser's: 0 is dark, 1 is light.
shot()
{
    HOME=$PWD timeout 60 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$PWD/profile" \
        --blink-settings="preferredColorScheme=$2" --window-size=900,500 --screenshot=shot.png \
        "file://$PWD/$1" >/dev/null 2>&1
    python3 "$ROOT/tests/tools/png.py" shot.png
}

if command -v chromium >/dev/null; then
    for page in pack.svg report.html; do
        it "shows $page in a browser, dark and light"
        cp -r "$pack" out
        moepack inspect out --svg pack.svg >/dev/null
        break_pack out
        moepack verify out --html report.html >/dev/null
        read -r light colors < <(shot $page 1)
        assert_equal "$light" '#ffffff'
        [ "$colors" -gt 20 ]
        assert $? "only $colors colors"
        read -r dark colors < <(shot $page 0)
        assert_equal "$dark" '#161616'
        [ "$colors" -gt 20 ]
        assert $? "only $colors colors"
    done
fi

finish
