/* SPDX-License-Identifier: Apache-2.0 */
/* Drawings of loads as SVG: heat maps of a load balancing, and bars of rank loads.
 *
 * A map of 61 layers on 320 GPUs has 19,520 cells. With one rectangle each the file would take
 * megabytes, so all cells of one color share a path, and neighbours in a row share a rectangle.
 * Cells are whole pixels and all numbers are integers or thousandths, so the bytes are the same on
 * every machine and in every locale. Colors are classes of load over mean rather than shades, so
 * that they can be told apart and the legend is exact.
 *
 * A drawing goes to a stream in memory, and a failure shows once, at its end (mp_text_finish). */
#include "charts.h"
#include "output.h"
#include "svg.h"

#include <inttypes.h>
#include <stdlib.h>

/* Pixels. */
enum {
    HEADER = 64, /* above the maps */
    FOOTER = 56, /* below them: axis and legend */
    GUTTER = 40, /* left of a map: numbers of layers */
    MAP_WIDTH = 384,
    MAP_HEIGHT = 560,
    BAR_GAP = 8,
    BAR_WIDTH = 80, /* of balancedness 1 */
    SWATCH = 40,
    LOAD_HEIGHT = 200
};

/* Cells are colored by load over mean load: upper bounds in hundredths, the last has none. */
static const unsigned class_bound[] = {25, 50, 75, 90, 110, 125, 150, 200};
#define CLASSES (sizeof(class_bound) / sizeof(class_bound[0]) + 1)

/* ------------------------------------------------------------------------
 * Heat maps of a load balancing
 */

/* One of the maps: what it shows and where. */
typedef struct heat_map {
    const char *title;
    const mp_placement *placement; /* for the numbers of its layers */
    const double *load;            /* [layers][ep] */
    double mean_balancedness;
    uint32_t layers, ep;
    uint32_t x, y;           /* of the upper left corner */
    uint32_t cell_x, cell_y; /* size of a cell */
} heat_map;

static double mean_of(const double *values, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += values[i];
    return sum / count;
}

/* Mean over largest load; 1 when nothing is loaded. */
static double balance(const double *load, uint32_t ep)
{
    double largest = 0;
    for (uint32_t gpu = 0; gpu < ep; gpu++)
        if (load[gpu] > largest)
            largest = load[gpu];
    return largest > 0 ? mean_of(load, ep) / largest : 1;
}

static unsigned class_of(double load, double mean)
{
    unsigned c = 0;
    if (mean <= 0)
        return CLASSES / 2; /* a layer that was never chosen is even */
    while (c < CLASSES - 1 && load * 100 > mean * class_bound[c])
        c++;
    return c;
}

/* Adds the cells of one color in one row to a path, neighbours as one rectangle. */
static void draw_runs(FILE *out, const heat_map *map, uint32_t layer, unsigned color)
{
    const double *load = map->load + (size_t)layer * map->ep;
    double mean = mean_of(load, map->ep);
    for (uint32_t gpu = 0; gpu < map->ep; gpu++) {
        uint32_t start = gpu;
        while (gpu < map->ep && class_of(load[gpu], mean) == color)
            gpu++;
        if (gpu > start) {
            uint32_t width = (gpu - start) * map->cell_x;
            fprintf(out, "M%u %uh%uv%uh-%uz", map->x + start * map->cell_x,
                    map->y + layer * map->cell_y, width, map->cell_y, width);
        }
    }
}

static void draw_cells(FILE *out, const heat_map *map)
{
    for (unsigned color = 0; color < CLASSES; color++) {
        fprintf(out, "<path class=\"c%u\" d=\"", color);
        for (uint32_t layer = 0; layer < map->layers; layer++)
            draw_runs(out, map, layer, color);
        fputs("\"/>\n", out);
    }
}

/* Numbers of the layers and of the first and last GPU. */
static void draw_axes(FILE *out, const heat_map *map)
{
    uint32_t step = 1;
    /* Label as many layers as fit, 14 pixels each. */
    while (step * map->cell_y < 14)
        step++;
    for (uint32_t layer = 0; layer < map->layers; layer += step)
        fprintf(out, "<text class=\"end\" x=\"%u\" y=\"%u\">%u</text>\n", map->x - 4,
                map->y + layer * map->cell_y + map->cell_y / 2 + 4,
                mp_placement_layer(map->placement, layer));
    svg_ends(out, "GPU", map->x, map->x + map->ep * map->cell_x,
             map->y + map->layers * map->cell_y + 16, map->ep);
}

static void draw_balancedness(FILE *out, const heat_map *map)
{
    uint32_t x = map->x + map->ep * map->cell_x + BAR_GAP;
    uint32_t height = map->cell_y > 2 ? map->cell_y - 1 : map->cell_y;
    fputs("<path class=\"bar\" d=\"", out);
    for (uint32_t layer = 0; layer < map->layers; layer++) {
        uint32_t width =
            (uint32_t)(BAR_WIDTH * balance(map->load + (size_t)layer * map->ep, map->ep));
        fprintf(out, "M%u %uh%uv%uh-%uz", x, map->y + layer * map->cell_y, width, height, width);
    }
    fprintf(out, "\"/>\n<path class=\"frame\" d=\"M%u %uh%uv%uh-%uz\"/>\n", x, map->y,
            (unsigned)BAR_WIDTH, map->layers * map->cell_y, (unsigned)BAR_WIDTH);
}

static void draw_map(FILE *out, const heat_map *map)
{
    char number[THOUSANDTHS];
    fprintf(out,
            "<text class=\"title\" x=\"%u\" y=\"%u\">%s</text>\n"
            "<text x=\"%u\" y=\"%u\">mean balancedness %s</text>\n",
            map->x, map->y - 26, map->title, map->x, map->y - 8,
            thousandths(map->mean_balancedness, number));
    draw_cells(out, map);
    draw_axes(out, map);
    draw_balancedness(out, map);
}

static void draw_legend(FILE *out, uint32_t x, uint32_t y)
{
    fprintf(out, "<text x=\"%u\" y=\"%u\">load / mean:</text>\n", x, y + 10);
    x += 80;
    for (unsigned color = 0; color < CLASSES; color++, x += SWATCH) {
        char number[THOUSANDTHS] = "";
        if (color < CLASSES - 1)
            thousandths(class_bound[color] / 100.0, number);
        fprintf(out,
                "<rect class=\"c%u\" x=\"%u\" y=\"%u\" width=\"%d\" height=\"12\"/>\n"
                "<text class=\"middle\" x=\"%u\" y=\"%u\">%.4s</text>\n",
                color, x, y, SWATCH, x + SWATCH, y + 26, number);
    }
}

static void draw_eplb(FILE *out, const mp_eplb *e)
{
    uint32_t layers = e->placement.layers;
    heat_map map = {.title = "trivial placement",
                    .placement = &e->placement,
                    .load = e->load_trivial,
                    .mean_balancedness = e->mean.balancedness_trivial,
                    .layers = layers,
                    .ep = e->ep,
                    .x = SVG_MARGIN + GUTTER,
                    .y = HEADER,
                    .cell_x = svg_cell(MAP_WIDTH, e->ep, 24),
                    .cell_y = svg_cell(MAP_HEIGHT, layers, 16)};
    uint32_t panel = GUTTER + e->ep * map.cell_x + BAR_GAP + BAR_WIDTH;
    uint32_t legend = GUTTER + 80 + CLASSES * SWATCH, panels = e->result ? 3 : 2;
    uint32_t width = panels * panel + (panels - 1) * SVG_MARGIN;
    width = width > legend ? width : legend;
    uint32_t height = HEADER + layers * map.cell_y + FOOTER + SVG_MARGIN;

    svg_begin(out, width + 2 * SVG_MARGIN, height,
              "GPU loads by layer, before and after balancing");
    draw_map(out, &map);
    map.title = "EPLB";
    map.load = e->load_eplb;
    map.mean_balancedness = e->mean.balancedness;
    map.x += panel + SVG_MARGIN;
    draw_map(out, &map);
    if (e->result) {
        map.title = e->result;
        map.load = e->load;
        map.mean_balancedness = e->mean.balancedness_refined;
        map.x += panel + SVG_MARGIN;
        draw_map(out, &map);
    }
    draw_legend(out, SVG_MARGIN + GUTTER, height - SVG_MARGIN - 28);
    fputs("</svg>\n", out);
}

int eplb_svg(const mp_eplb *e, char **svg, mp_error *err)
{
    size_t length;
    FILE *out = open_memstream(svg, &length);
    if (!out)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    draw_eplb(out, e);
    return text_finish(out, svg, err);
}

/* ------------------------------------------------------------------------
 * Rank loads
 */

static void draw_rank_load(FILE *out, const uint64_t *choices, uint32_t ep)
{
    uint32_t bar = svg_cell(2 * MAP_WIDTH, ep, 32);
    uint32_t width = ep * bar < MAP_WIDTH ? MAP_WIDTH : ep * bar;
    uint32_t x = SVG_MARGIN, bottom = HEADER + LOAD_HEIGHT;
    uint64_t largest = 0, sum = 0;
    char number[THOUSANDTHS];
    for (uint32_t rank = 0; rank < ep; rank++) {
        sum += choices[rank];
        largest = choices[rank] > largest ? choices[rank] : largest;
    }
    double scale = largest > 0 ? (double)LOAD_HEIGHT / (double)largest : 0;
    svg_begin(out, width + 2 * SVG_MARGIN + GUTTER, bottom + FOOTER, "choices of each rank");
    fprintf(out,
            "<text class=\"title\" x=\"%u\" y=\"%u\">choices of each rank</text>\n"
            "<text x=\"%u\" y=\"%u\">largest %" PRIu64 ", balancedness %s</text>\n"
            "<path class=\"bar\" d=\"",
            x, HEADER - 26, x, HEADER - 8, largest,
            thousandths(mp_balancedness(choices, ep), number));
    for (uint32_t rank = 0; rank < ep; rank++) {
        uint32_t height = (uint32_t)((double)choices[rank] * scale);
        fprintf(out, "M%u %uv-%uh%uv%uz", x + rank * bar, bottom, height, bar > 2 ? bar - 1 : bar,
                height);
    }
    uint32_t mean = bottom - (uint32_t)((double)sum / ep * scale);
    fprintf(out,
            "\"/>\n<path class=\"frame\" d=\"M%u %uh%uM%u %uh%u\"/>\n"
            "<text x=\"%u\" y=\"%u\">mean</text>\n",
            x, bottom, ep * bar, x, mean, ep * bar, x + ep * bar + 4, mean + 4);
    svg_ends(out, "rank", x, x + ep * bar, bottom + 16, ep);
    fputs("</svg>\n", out);
}

int rank_load_svg(const uint64_t *choices, uint32_t ep, char **svg, mp_error *err)
{
    size_t length;
    FILE *out = open_memstream(svg, &length);
    if (!out)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    draw_rank_load(out, choices, ep);
    return text_finish(out, svg, err);
}
