/* SPDX-License-Identifier: Apache-2.0 */
#include "svg.h"

#include <string.h>

static const char *const style =
    "<style>\n"
    "text { font: 12px sans-serif; fill: #1c1c1c; }\n"
    ".title { font-size: 14px; font-weight: bold; }\n"
    ".end { text-anchor: end; }\n"
    ".middle { text-anchor: middle; }\n"
    ".paper { fill: #ffffff; }\n"
    ".bar { fill: #5b8f5b; }\n"
    ".frame { fill: none; stroke: #9a9a9a; }\n"
    ".c0 { fill: #2166ac; } .c1 { fill: #67a9cf; } .c2 { fill: #a6cde3; } .c3 { fill: #d1e5f0; }\n"
    ".c4 { fill: #e6e6e6; }\n"
    ".c5 { fill: #fddbc7; } .c6 { fill: #f4a582; } .c7 { fill: #d6604d; } .c8 { fill: #b2182b; }\n"
    ".once { fill: #d1e5f0; } .copies { fill: #f4a582; } .shared { fill: #b7dbb0; }\n"
    "@media (prefers-color-scheme: dark) {\n"
    "text { fill: #e4e4e4; }\n"
    ".paper { fill: #161616; }\n"
    ".bar { fill: #74b874; }\n"
    ".frame { stroke: #707070; }\n"
    ".c0 { fill: #5aa9ff; } .c1 { fill: #4484c6; } .c2 { fill: #386494; } .c3 { fill: #344b63; }\n"
    ".c4 { fill: #3a3a3a; }\n"
    ".c5 { fill: #634538; } .c6 { fill: #985739; } .c7 { fill: #d66f41; } .c8 { fill: #ff9a66; }\n"
    ".once { fill: #344b63; } .copies { fill: #985739; } .shared { fill: #3f6b3b; }\n"
    "}\n"
    "</style>\n";

void svg_begin(FILE *out, uint32_t width, uint32_t height, const char *title)
{
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" "
            "viewBox=\"0 0 %u %u\" role=\"img\">\n<title>%s</title>\n%s"
            "<rect class=\"paper\" width=\"%u\" height=\"%u\"/>\n",
            width, height, width, height, title, style, width, height);
}

void svg_text(FILE *out, const char *text)
{
    static const char special[] = "&<>\"";
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&quot;"};
    for (; *text; text++) {
        const char *found = strchr(special, *text);
        if (found)
            fputs(entities[found - special], out);
        else
            fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
    }
}

void svg_ends(FILE *out, const char *thing, uint32_t left, uint32_t right, uint32_t y,
              uint32_t count)
{
    fprintf(out, "<text x=\"%u\" y=\"%u\">%s 0</text>\n", left, y, thing);
    if (count > 1)
        fprintf(out, "<text class=\"end\" x=\"%u\" y=\"%u\">%u</text>\n", right, y, count - 1);
}

uint32_t svg_cell(uint32_t room, uint32_t cells, uint32_t largest)
{
    uint32_t size = room / cells;
    return size < 1 ? 1 : size > largest ? largest : size;
}
