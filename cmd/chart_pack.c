/* SPDX-License-Identifier: Apache-2.0 */
/* A picture of a pack: a line of cells for every layer, a cell for every slot, rank beside rank,
 * and the bytes of every rank below. Colors say which slots hold the only copy of an expert, one of
 * several, or a shared expert.
 *
 * Cells are computed once, as a table [layers][ep][columns], and drawn color by color. All cells of
 * a color share one path and neighbours share a rectangle, which keeps the picture of a pack with
 * thousands of slots at tens of kilobytes. Coordinates are whole pixels, so the bytes are the same
 * everywhere. Ranks that are not here still have cells, from the placement, but only an outline for
 * a bar. Layer names come from a manifest that anyone may have written, and are escaped
 * (mp_svg_text). One thread. */
#include "charts.h"
#include "output.h"
#include "svg.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Pixels. */
enum {
    MAP_WIDTH = 960,
    MAP_HEIGHT = 560,
    LARGEST_CELL = 28,
    NUMBERED_CELL = 20, /* cells as wide as this have their expert's number */
    RANK_GAP = 6,
    HEADER = 64, /* above the map */
    BARS = 64,   /* of bytes */
    FOOTER = 72, /* below them: ranks and legend */
    LETTER = 7,
    SWATCH = 200
};

#define LABEL 32 /* letters of a layer's name that are shown: its last ones */

typedef enum color { NOTHING, ONCE, COPIES, SHARED, COLORS } color;

static const char *const classes[COLORS] = {
    [ONCE] = "once", [COPIES] = "copies", [SHARED] = "shared"};
static const char *const meanings[COLORS] = {
    [ONCE] = "the only copy", [COPIES] = "one of several copies", [SHARED] = "shared expert"};

typedef struct cell {
    color color;
    uint32_t id; /* as mp_shape counts */
} cell;

typedef struct slot_map {
    const mp_pack *pack;
    uint32_t ep, layers;
    uint32_t columns; /* of a rank: its slots, and shared experts that are apart */
    cell *cells;      /* [layers][ep][columns] */
    uint32_t x, cell_x, cell_y;
} slot_map;

static const cell *cells_of(const slot_map *map, uint32_t layer, uint32_t rank)
{
    return map->cells + ((size_t)layer * map->ep + rank) * map->columns;
}

static uint32_t rank_x(const slot_map *map, uint32_t rank)
{
    return map->x + rank * (map->columns * map->cell_x + RANK_GAP);
}

/* Sets the cells of a layer. copies: room for a number for each routed expert. */
static int fill_layer(slot_map *map, uint32_t layer, uint32_t *copies, mp_error *err)
{
    const mp_shape *shape = mp_pack_get(map->pack)->shape;
    const mp_slots *slots = &shape->slots;
    uint32_t total = slots->total;
    cell *cells = map->cells + (size_t)layer * map->ep * map->columns;
    mp_slot *table = calloc(total, sizeof *table);
    int rc = table
                 ? mp_slots_table(slots, mp_placement_row(mp_pack_get(map->pack)->placement, layer),
                                  table, err)
                 : cmd_fail(err, MP_ERR_IO, "out of memory");
    if (rc == 0)
        memset(copies, 0, slots->num_logical * sizeof *copies);
    for (uint32_t i = 0; rc == 0 && i < total; i++)
        if (table[i].kind == MP_SLOT_ROUTED)
            copies[table[i].checkpoint_id]++;
    for (uint32_t i = 0; rc == 0 && i < total; i++) {
        uint32_t id = table[i].checkpoint_id;
        cell *c = cells + (size_t)table[i].rank * map->columns + table[i].local;
        c->id = id;
        c->color = table[i].kind == MP_SLOT_SHARED ? SHARED : copies[id] > 1 ? COPIES : ONCE;
    }
    free(table);
    for (uint32_t rank = 0; rc == 0 && shape->num_sets > 1 && rank < map->ep; rank++)
        for (uint32_t i = 0; i < shape->sets[MP_SET_SHARED].slots; i++)
            cells[(size_t)rank * map->columns + slots->per_rank + i] =
                (cell){SHARED, slots->num_logical + i};
    return rc;
}

static int fill(slot_map *map, mp_error *err)
{
    size_t count;
    uint32_t *copies = calloc(mp_pack_get(map->pack)->shape->slots.num_logical, sizeof *copies);
    int rc = 0;
    if (!__builtin_mul_overflow((size_t)map->layers * map->ep, map->columns, &count))
        map->cells = calloc(count, sizeof *map->cells);
    if (!copies || !map->cells)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint32_t layer = 0; rc == 0 && layer < map->layers; layer++)
        rc = fill_layer(map, layer, copies, err);
    free(copies);
    return rc;
}

/* Cells of one color, neighbours as one rectangle. */
static void draw_color(FILE *out, const slot_map *map, color wanted)
{
    fprintf(out, "<path class=\"%s\" d=\"", classes[wanted]);
    for (uint32_t layer = 0; layer < map->layers; layer++)
        for (uint32_t rank = 0; rank < map->ep; rank++)
            for (uint32_t slot = 0; slot < map->columns; slot++) {
                const cell *cells = cells_of(map, layer, rank);
                uint32_t first = slot;
                while (slot < map->columns && cells[slot].color == wanted)
                    slot++;
                if (slot == first)
                    continue;
                fprintf(out, "M%u %uh%uv%uh-%uz", rank_x(map, rank) + first * map->cell_x,
                        HEADER + layer * map->cell_y, (slot - first) * map->cell_x, map->cell_y,
                        (slot - first) * map->cell_x);
            }
    fputs("\"/>\n", out);
}

static void draw_numbers(FILE *out, const slot_map *map)
{
    for (uint32_t layer = 0; layer < map->layers; layer++)
        for (uint32_t rank = 0; rank < map->ep; rank++)
            for (uint32_t slot = 0; slot < map->columns; slot++) {
                const cell *c = cells_of(map, layer, rank) + slot;
                if (c->color != NOTHING)
                    fprintf(out, "<text class=\"middle\" x=\"%u\" y=\"%u\">%u</text>\n",
                            rank_x(map, rank) + slot * map->cell_x + map->cell_x / 2,
                            HEADER + layer * map->cell_y + map->cell_y / 2 + 4, c->id);
            }
}

/* The last letters of a layer's name, which has to begin with a letter of ASCII. */
static const char *label(const char *layer)
{
    size_t length = strlen(layer);
    const char *text = layer + (length > LABEL ? length - LABEL : 0);
    /* Do not start in the middle of a UTF-8 character. */
    while ((*text & 0xc0) == 0x80)
        text++;
    return text;
}

static void draw_layers(FILE *out, const slot_map *map)
{
    uint32_t step = 1;
    while (step * map->cell_y < 14)
        step++;
    for (uint32_t layer = 0; layer < map->layers; layer += step) {
        fprintf(out, "<text class=\"end\" x=\"%u\" y=\"%u\">", map->x - 4,
                HEADER + layer * map->cell_y + map->cell_y / 2 + 4);
        svg_text(out, label(mp_pack_get(map->pack)->manifest->layers[layer]));
        fputs("</text>\n", out);
    }
}

static uint64_t rank_bytes(const mp_pack *pack, uint32_t rank)
{
    const mp_checkpoint *files = mp_pack_rank(pack, rank);
    uint64_t bytes = 0;

    for (size_t i = 0; files && i < files->num_tensors; i++)
        bytes += files->tensors[i].bytes;
    return bytes;
}

/* Bars, their outline where a rank is not here, and its number where there is room. */
static void draw_ranks(FILE *out, const slot_map *map, uint32_t top)
{
    uint32_t width = map->columns * map->cell_x;
    uint64_t largest = 1;
    for (uint32_t rank = 0; rank < map->ep; rank++)
        if (rank_bytes(map->pack, rank) > largest)
            largest = rank_bytes(map->pack, rank);
    for (uint32_t rank = 0; rank < map->ep; rank++) {
        uint64_t bytes = rank_bytes(map->pack, rank);
        uint32_t height = (uint32_t)((double)bytes / (double)largest * BARS);
        fprintf(out,
                "<path class=\"%s\" d=\"M%u %uh%uv%uh-%uz\"><title>rank %u: %" PRIu64
                " bytes</title></path>\n",
                mp_pack_rank(map->pack, rank) ? "bar" : "frame", rank_x(map, rank), top, width,
                mp_pack_rank(map->pack, rank) ? height : (uint32_t)BARS, width, rank, bytes);
        if (width >= 5 * LETTER || rank == 0)
            fprintf(out, "<text x=\"%u\" y=\"%d\">%s%u</text>\n", rank_x(map, rank), HEADER - 8,
                    rank == 0 ? "rank " : "", rank);
    }
}

static void draw(FILE *out, slot_map *map)
{
    const mp_pack *pack = map->pack;
    char title[160], bytes[THOUSANDTHS];
    uint32_t letters = 0, with_gaps, map_bottom, width, bottom;
    uint64_t total = 0;

    for (uint32_t layer = 0; layer < map->layers; layer++) {
        uint32_t length = (uint32_t)strlen(label(mp_pack_get(pack)->manifest->layers[layer]));
        letters = length > letters ? length : letters;
    }
    for (uint32_t rank = 0; rank < map->ep; rank++)
        total += rank_bytes(pack, rank);
    map->cell_x = svg_cell(MAP_WIDTH, map->ep * map->columns, LARGEST_CELL);
    map->cell_y = svg_cell(MAP_HEIGHT, map->layers, LARGEST_CELL);
    map->x = SVG_MARGIN + letters * LETTER + 4;
    with_gaps = rank_x(map, map->ep) - RANK_GAP;
    width = SVG_MARGIN + 3 * SWATCH;
    width = (width > with_gaps ? width : with_gaps) + SVG_MARGIN;
    map_bottom = HEADER + map->layers * map->cell_y;
    bottom = map_bottom + RANK_GAP + BARS;

    snprintf(title, sizeof title, "%s: %u ranks of %u slots, %u experts as %u physical",
             mp_pack_get(pack)->shape->sets[MP_SET_SLOTS].target->name, map->ep,
             mp_pack_get(pack)->shape->slots.per_rank, mp_pack_get(pack)->shape->slots.num_logical,
             mp_pack_get(pack)->shape->slots.num_physical);
    svg_begin(out, width, bottom + FOOTER, title);
    fprintf(out, "<text class=\"title\" x=\"%u\" y=\"%d\">%s</text>\n", SVG_MARGIN, HEADER - 40,
            title);
    for (color c = ONCE; c < COLORS; c++)
        draw_color(out, map, c);
    if (map->cell_x >= NUMBERED_CELL && map->cell_y >= NUMBERED_CELL / 2)
        draw_numbers(out, map);
    draw_layers(out, map);
    draw_ranks(out, map, map_bottom + RANK_GAP);
    fprintf(out, "<text x=\"%u\" y=\"%u\">bytes of each rank, %s GB in all</text>\n", map->x,
            bottom + 16, thousandths((double)total * 1e-9, bytes));
    for (color c = ONCE; c < COLORS; c++)
        fprintf(out,
                "<rect class=\"%s\" x=\"%u\" y=\"%u\" width=\"12\" height=\"12\"/>\n"
                "<text x=\"%u\" y=\"%u\">%s</text>\n",
                classes[c], SVG_MARGIN + (c - ONCE) * SWATCH, bottom + 36,
                SVG_MARGIN + (c - ONCE) * SWATCH + 18, bottom + 46, meanings[c]);
    fputs("</svg>\n", out);
}

int pack_svg(const mp_pack *pack, char **svg, mp_error *err)
{
    const mp_slots *slots = &mp_pack_get(pack)->shape->slots;
    slot_map map = {
        .pack = pack, .ep = slots->ep, .layers = (uint32_t)mp_pack_get(pack)->manifest->num_layers};
    size_t length;
    FILE *out = NULL;

    *svg = NULL;
    /* The last rank has the most where shared experts are in one slot each. */
    map.columns = slots->total - (slots->ep - 1) * slots->per_rank;
    if (mp_pack_get(pack)->shape->num_sets > 1)
        map.columns += mp_pack_get(pack)->shape->sets[MP_SET_SHARED].slots;
    int rc = fill(&map, err);
    if (rc == 0 && !(out = open_memstream(svg, &length)))
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    if (rc == 0) {
        draw(out, &map);
        rc = text_finish(out, svg, err);
    }
    free(map.cells);
    return rc;
}
