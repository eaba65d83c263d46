/* SPDX-License-Identifier: Apache-2.0 */
/* verify, structure: the manifest, small files, headers and the set of tensors. */
#include "verify_pack.h"

#include <sys/stat.h>

TestSuite(verify_structure, .init = make_pack, .fini = remove_pack);

static void expect_unsupported(const char *message)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};

    cr_assert_eq(verify_with(options, 1), MP_ERR_UNSUPPORTED, "%s", err.message);
    cr_expect_str_eq(err.message, message);
}

/* The only fault, about a tensor. */
static void expect_tensor(int64_t rank, const char *layer, const char *tensor, const char *detail)
{
    expect_count(1);
    expect(0, MP_VERIFY_STRUCTURE, rank, layer, -1, tensor, -1, detail);
}

/* ------------------------------------------------------------------------
 * The manifest
 */

Test(verify_structure, wants_a_manifest)
{
    char message[700];
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};

    cr_assert_eq(unlink(at(MP_MANIFEST_NAME)), 0);
    cr_assert_eq(verify_with(options, 1), MP_ERR_INPUT);
    snprintf(message, sizeof message, "\"%s\" is not a pack: it has no moepack.json", out);
    cr_expect_str_eq(err.message, message);
}

/* Nothing else is checked then: nothing else is known. */
Test(verify_structure, finds_a_change_of_a_byte_of_the_manifest)
{
    uint64_t length;
    char *text = get_text(at(MP_MANIFEST_NAME), &length);

    cr_assert_gt(length, 1000);
    for (uint64_t i = 0; i < length; i += 5) {
        text[i] ^= 1 << i % 7;
        put_bytes(at(MP_MANIFEST_NAME), text, length);
        verify(MP_VERIFY_EXACT);
        expect_structure(-1, MP_MANIFEST_NAME);
        cr_assert_eq(report.num_parts, 1);
        text[i] ^= 1 << i % 7;
    }
    free(text);
}

Test(verify_structure, finds_a_manifest_that_is_cut_short)
{
    put_text(at(MP_MANIFEST_NAME), "");
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "moepack.json: does not end in its digest");
}

Test(verify_structure, refuses_what_it_does_not_know)
{
    mp_manifest m;

    load_manifest(&m);
    m.target_version++;
    save_manifest(&m);
    expect_unsupported("moepack.json: this version does not know target megamoe-w4a8/2");

    load_manifest(&m);
    m.target_version--;
    m.nz = true;
    save_manifest(&m);
    expect_unsupported("moepack.json: this version does not know target megamoe-w4a8/1 in "
                       "FRACTAL_NZ form");

    load_manifest(&m);
    m.nz = false;
    m.target[0] = 'M';
    save_manifest(&m);
    expect_unsupported("moepack.json: this version does not know target Megamoe-w4a8/1");
}

/* Sets the shared mode, without forms unless there are to be some. */
static void expect_shared_lie(mp_shared_mode mode, uint64_t experts, bool forms, const char *detail)
{
    uint64_t length;
    char *truth = get_text(at(MP_MANIFEST_NAME), &length);
    mp_manifest m;

    load_manifest(&m);
    m.shared = mode;
    m.num_shared_experts = experts;
    if (forms)
        m.shared_form = calloc(m.num_layers, sizeof *m.shared_form);
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, detail);
    put_text(at(MP_MANIFEST_NAME), truth);
    free(truth);
}

Test(verify_structure, finds_shared_experts_that_cannot_be)
{
    expect_shared_lie(MP_SHARED_FUSED, 0, true,
                      "moepack.json: shared experts are fused, but the model has none");
    expect_shared_lie(MP_SHARED_SEPARATE, 1, false,
                      "moepack.json: shared experts are separate, but shared_forms is missing");
    expect_shared_lie(MP_SHARED_SEPARATE, 4096, true,
                      "moepack.json: 4096 shared experts of size 256 are wider than 1048576");
}

/* Every rank has slots of its own for fused shared experts, or tensors for separate ones. */
Test(verify_structure, finds_shared_experts_that_are_not_there)
{
    mp_manifest m;

    load_manifest(&m);
    m.shared = MP_SHARED_FUSED;
    m.shared_form = calloc(m.num_layers, sizeof *m.shared_form);
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_count(2 * (8 + 1));
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "total_size");
    expect(1, MP_VERIFY_STRUCTURE, 0, "layers.0", -1, "layers.0.experts.l1_weight", -1,
           "I8 [3, 512, 192], expected I8 [4, 512, 192]");

    load_manifest(&m);
    m.shared = MP_SHARED_SEPARATE;
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_count(2 * (8 + 1));
    expect(1, MP_VERIFY_STRUCTURE, 0, "layers.0", -1, "layers.0.shared_experts.shared_l1_weight",
           -1, "missing");
}

/* Changes the manifest, expects the fault, and changes it back. */
#define EXPECT_LIE(member, value, detail)                        \
    do {                                                         \
        uint64_t length_;                                        \
        char *truth_ = get_text(at(MP_MANIFEST_NAME), &length_); \
        mp_manifest m_;                                          \
                                                                 \
        load_manifest(&m_);                                      \
        m_.member = (value);                                     \
        save_manifest(&m_);                                      \
        verify(MP_VERIFY_STRUCTURE);                             \
        expect_structure(-1, detail);                            \
        put_text(at(MP_MANIFEST_NAME), truth_);                  \
        free(truth_);                                            \
    } while (0)

Test(verify_structure, finds_numbers_that_are_none_of_a_pack)
{
    EXPECT_LIE(hidden_size, 1u << 21, "moepack.json: sizes 2097152 and 256 are over 1048576");
    EXPECT_LIE(moe_intermediate_size, 1ull << 40, "are over 1048576");
    EXPECT_LIE(moe_intermediate_size, 200, "expert intermediate size is 200");
    EXPECT_LIE(hidden_size, 0, "hidden size is 0");
    EXPECT_LIE(num_experts, 0, "moepack.json: ");
    EXPECT_LIE(num_experts, 7, "moepack.json: ");
    EXPECT_LIE(model_layers, 1, "moepack.json: 2 layers, the model has 1 MoE layer");
    EXPECT_LIE(num_physical, 5, "moepack.json: 5 physical experts on 2 ranks");
}

Test(verify_structure, finds_lists_that_are_none_of_a_pack)
{
    mp_manifest m;

    load_manifest(&m);
    free(m.layers[1]);
    m.layers[1] = strdup("layers.0");
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "moepack.json: layer layers.0 is listed twice");

    load_manifest(&m);
    free(m.layers[1]);
    m.num_layers = 0;
    free(m.layers[0]);
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "moepack.json: 0 layers, the model has 2 MoE layers");
}

Test(verify_structure, finds_a_scheme_that_the_target_does_not_take)
{
    mp_manifest m;

    load_manifest(&m);
    m.target_scheme = MP_SCHEME_NVFP4;
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "moepack.json: quantized to nvfp4, but megamoe-w4a8 takes mxfp4");
}

/* ------------------------------------------------------------------------
 * Small files
 */

Test(verify_structure, finds_a_changed_placement)
{
    put_text(at(MP_PLACEMENT_NAME), "{\"physical_to_logical_map\": "
                                    "[[4, 0, 2, 1, 3, 2], [0, 1, 1, 3, 4, 2]]}");
    verify(MP_VERIFY_EXACT);
    expect_structure(-1, "placement.json: changed: its xxh3 is ");
    cr_expect_eq(report.slots, 0);
}

Test(verify_structure, finds_a_missing_placement)
{
    cr_assert_eq(unlink(at(MP_PLACEMENT_NAME)), 0);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "placement.json: missing");
}

static void expect_placement_fault(const char *rows, const char *detail)
{
    char text[200];

    snprintf(text, sizeof text, "{\"physical_to_logical_map\": %s}", rows);
    put_text(at(MP_PLACEMENT_NAME), text);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_structure(-1, detail);
}

Test(verify_structure, finds_a_placement_of_another_pack)
{
    expect_placement_fault("[[4, 0, 2, 1], [0, 1, 2, 3]]", "placement.json: ");
    expect_placement_fault("[[4, 0, 2, 1, 3, 3], [0, 1, 1, 4, 3, 3]]", "placement.json: ");
    expect_placement_fault("[[4, 0, 2, 1, 3, 5], [0, 1, 1, 4, 3, 2]]", "placement.json: ");
    expect_placement_fault("[[4, 0, 2, 1, 3, 2, 0, 1], [0, 1, 1, 4, 3, 2, 0, 1]]",
                           "placement.json: 8 physical experts, the manifest says 6");
    expect_placement_fault("[[4, 0, 2, 1, 3, 2], [0, 1, 1, 4, 3, 2], [0, 1, 1, 4, 3, 2]]",
                           "placement.json: 3 rows for 2 layers");
}

Test(verify_structure, takes_a_single_row_for_all_layers)
{
    put_text(at(MP_PLACEMENT_NAME), "{\"physical_to_logical_map\": [[4, 0, 2, 1, 3, 2]]}");
    seal();
    verify(MP_VERIFY_STRUCTURE);
    expect_count(0);
}

Test(verify_structure, finds_a_changed_config)
{
    uint64_t length;
    char *text = get_text(at(MP_CONFIG_NAME), &length);

    text[length - 2]++;
    put_text(at(MP_CONFIG_NAME), text);
    free(text);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "config.json: changed: its xxh3 is ");
}

Test(verify_structure, finds_a_config_that_should_not_be_there)
{
    mp_manifest m;

    load_manifest(&m);
    m.config_xxh3[0] = '\0';
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(-1, "config.json: the manifest does not name it");
}

Test(verify_structure, finds_what_the_manifest_does_not_name)
{
    put_text(at("rank-0000"), "x");
    cr_assert_eq(mkdir(at("rank-002"), 0777), 0);
    put_text(at("rank-001/model-00002-of-00001.safetensors"), "x");
    cr_assert_eq(mkdir(at("rank-000/.cache\n"), 0777), 0);
    verify(MP_VERIFY_STRUCTURE);
    expect_count(4);
    expect(0, MP_VERIFY_STRUCTURE, -1, NULL, -1, NULL, -1,
           "rank-0000: the manifest does not name it");
    expect(1, MP_VERIFY_STRUCTURE, -1, NULL, -1, NULL, -1, "rank-002: ");
    expect(2, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, ".cache?: ");
    expect(3, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1, "model-00002-of-00001.safetensors: ");
}

Test(verify_structure, keeps_the_first_faults_and_counts_the_others)
{
    for (int i = 249; i >= 0; i--)
        put_text(at("rank-001/extra-%03d", i), "");
    put_text(at("rank-000/zzz"), "");
    verify(MP_VERIFY_STRUCTURE);
    cr_expect_eq(report.total_faults, 251);
    cr_assert_eq(report.num_faults, MP_FAULTS_KEPT);
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "zzz: ");
    expect(1, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1, "extra-000: ");
    expect(99, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1, "extra-098: ");
    cr_expect_eq(report.parts[2].rank, 1);
    cr_expect_eq(report.parts[2].faults, 250);
}

/* ------------------------------------------------------------------------
 * Ranks and files
 */

Test(verify_structure, finds_a_missing_rank)
{
    succeed(mp_remove_tree(at("rank-000"), &err));
    verify(MP_VERIFY_EXACT);
    expect_structure(0, "the directory is missing");
    cr_expect_eq(report.files, 1);
    cr_expect_eq(report.slots, 2 * SLOTS);
}

Test(verify_structure, finds_swapped_ranks)
{
    cr_assert_eq(rename(at("rank-000"), at("x")), 0);
    cr_assert_eq(rename(at("rank-001"), at("rank-000")), 0);
    cr_assert_eq(rename(at("x"), at("rank-001")), 0);
    verify(MP_VERIFY_STRUCTURE);
    expect_count(2);
    for (int rank = 0; rank < 2; rank++)
        expect((size_t)rank, MP_VERIFY_STRUCTURE, rank, NULL, -1, NULL, -1,
               rank == 0 ? "__metadata__ says ep_rank \"1\", the manifest says \"0\""
                         : "__metadata__ says ep_rank \"0\", the manifest says \"1\"");
    verify(MP_VERIFY_DIGEST);
    expect_count(2 + 2 * 2 * 4);
    expect(1, MP_VERIFY_DIGEST, 0, "layers.0", -1, "layers.0.experts.l1_weight", -1,
           "holds the bytes of rank 1");
}

Test(verify_structure, finds_missing_and_misshapen_files)
{
    struct stat status;

    cr_assert_eq(stat(rank_file(1), &status), 0);
    cr_assert_eq(truncate(rank_file(1), status.st_size - 1), 0);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "model-00001-of-00001.safetensors: truncated: ");
    cr_assert_eq(truncate(rank_file(1), status.st_size + 1), 0);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "model-00001-of-00001.safetensors: too long: ");
    cr_assert_eq(unlink(rank_file(1)), 0);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "model-00001-of-00001.safetensors: missing");
    cr_assert_eq(mkdir(rank_file(1), 0777), 0);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "model-00001-of-00001.safetensors: not a regular file");
}

Test(verify_structure, finds_a_malformed_header)
{
    int fd;

    succeed(mp_open_write(rank_file(0), &fd, &err));
    succeed(mp_pwrite_all(fd, "[", 1, 8, "", &err));
    succeed(mp_file_close(fd, "", &err));
    verify(MP_VERIFY_EXACT);
    expect_structure(0, "model-00001-of-00001.safetensors: ");
}

Test(verify_structure, finds_a_changed_index)
{
    uint64_t length;
    char *text = get_text(at("rank-001/" MP_INDEX_NAME), &length);

    text[length - 1] = ' ';
    put_text(at("rank-001/" MP_INDEX_NAME), text);
    free(text);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(1, "model.safetensors.index.json: changed: its xxh3 is ");
    cr_assert_eq(unlink(at("rank-001/" MP_INDEX_NAME)), 0);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(1, "model.safetensors.index.json: missing");
}

/* An index whose digest is right, and nothing else. */
static void expect_index_fault(const char *text, uint64_t faults, size_t which, const char *detail)
{
    mp_manifest m;

    put_text(at("rank-000/" MP_INDEX_NAME), text);
    load_manifest(&m);
    digest_text(at("rank-000/" MP_INDEX_NAME), m.ranks[0].index_xxh3);
    save_manifest(&m);
    verify(MP_VERIFY_STRUCTURE);
    expect_count(faults);
    expect(which, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, detail);
}

Test(verify_structure, reads_the_index)
{
    expect_index_fault("x", 1, 0, MP_INDEX_NAME);
    expect_index_fault("{\"metadata\": {\"total_size\": 940032}}", 1, 0, "weight_map");
    expect_index_fault("{\"metadata\": {\"total_size\": 940031}, \"weight_map\": {}}", 10, 9,
                       "total_size 940031, but the tensors of a rank are 940032 bytes");
    expect_index_fault("{\"metadata\": {\"total_size\": 940032}, \"weight_map\": "
                       "{\"layers.0.experts.l1_weight\": \"elsewhere\"}}",
                       9, 1,
                       "says that layers.0.experts.l1_weight is in elsewhere, not "
                       "model-00001-of-00001.safetensors");
}

/* ------------------------------------------------------------------------
 * Headers and the set of tensors, in files whose manifest and index agree with them
 */

#define MOST_TENSORS 12

/* A rank's file, to be edited and written anew. */
static struct {
    mp_tensor_spec specs[MOST_TENSORS];
    uint64_t shapes[MOST_TENSORS][4];
    uint8_t *data[MOST_TENSORS];
    size_t count;
    const char *metadata[10];
    size_t pairs;
    uint64_t align;
} edit;

static void begin_edit(uint32_t rank)
{
    static const char *const metadata[] = {
        "format",  "moepack", "format_version", "1", "target", "megamoe-w4a8",
        "ep_rank", NULL,      "ep_size",        "2"};
    mp_checkpoint file;

    memcpy(edit.metadata, metadata, sizeof metadata);
    edit.metadata[7] = rank == 0 ? "0" : "1";
    edit.pairs = 5;
    edit.align = MP_SAFETENSORS_ALIGN;
    succeed(mp_checkpoint_open(&file, rank_file(rank), NULL, &err));
    edit.count = file.num_tensors;
    qsort(file.tensors, file.num_tensors, sizeof *file.tensors, by_offset);
    for (size_t i = 0; i < edit.count; i++) {
        const mp_tensor *t = &file.tensors[i];

        memcpy(edit.shapes[i], t->shape, t->rank * sizeof t->shape[0]);
        edit.specs[i] = (mp_tensor_spec){strdup(t->name), t->dtype, t->rank, edit.shapes[i]};
        edit.data[i] = malloc(t->bytes);
        succeed(mp_tensor_read(&file, t, 0, t->bytes, edit.data[i], &err));
    }
    mp_checkpoint_release(&file);
}

static void end_edit(uint32_t rank)
{
    uint64_t header_bytes, offsets[MOST_TENSORS + 1];
    char *header;
    int fd;

    succeed(mp_safetensors_header(edit.specs, edit.count, edit.metadata, edit.pairs, edit.align,
                                  &header, &header_bytes, offsets, &err));
    cr_assert_eq(unlink(rank_file(rank)), 0);
    succeed(mp_open_write(rank_file(rank), &fd, &err));
    succeed(mp_pwrite_all(fd, header, header_bytes, 0, "", &err));
    for (size_t i = 0; i < edit.count; i++) {
        succeed(mp_pwrite_all(fd, edit.data[i], offsets[i + 1] - offsets[i], offsets[i], "", &err));
        free(edit.data[i]);
        free((char *)edit.specs[i].name);
    }
    succeed(mp_file_close(fd, "", &err));
    free(header);
    seal();
}

Test(verify_structure, an_unchanged_edit_is_sound)
{
    begin_edit(1);
    end_edit(1);
    verify(MP_VERIFY_EXACT);
    expect_count(0);
}

Test(verify_structure, finds_wrong_metadata)
{
    static const char *const details[] = {"format \"moepacX\"", "format_version \"X\"",
                                          "target \"megamoe-w4aX\"", "ep_rank \"X\"",
                                          "ep_size \"X\""};

    for (size_t i = 0; i < 5; i++) {
        char value[32];

        begin_edit(1);
        snprintf(value, sizeof value, "%s", edit.metadata[2 * i + 1]);
        value[strlen(value) - 1] = 'X';
        edit.metadata[2 * i + 1] = value;
        end_edit(1);
        verify(MP_VERIFY_STRUCTURE);
        expect_structure(1, details[i]);
    }
    begin_edit(1);
    edit.pairs = 4;
    end_edit(1);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(1, "__metadata__ does not have \"ep_size\"");
}

Test(verify_structure, finds_data_that_does_not_begin_at_a_page)
{
    begin_edit(0);
    edit.align = 512;
    end_edit(0);
    verify(MP_VERIFY_STRUCTURE);
    expect_structure(0, "data begins at byte ");
}

/* The manifest and the index agree that the tensor is not there. */
Test(verify_structure, finds_a_tensor_that_nobody_misses)
{
    begin_edit(0);
    edit.count--;
    cr_assert_str_eq(edit.specs[edit.count].name, "mtp.0.experts.l2_weight_sf");
    end_edit(0);
    verify(MP_VERIFY_EXACT);
    expect_count(2);
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "total_size");
    expect(1, MP_VERIFY_STRUCTURE, 0, "mtp.0", -1, "mtp.0.experts.l2_weight_sf", -1, "missing");
    cr_expect_eq(report.slots, 3 * SLOTS);
}

Test(verify_structure, finds_a_tensor_that_nobody_wants)
{
    begin_edit(1);
    edit.specs[edit.count] =
        (mp_tensor_spec){strdup("layers.1.experts.l1_weight"), MP_U8, 1, edit.shapes[edit.count]};
    edit.shapes[edit.count][0] = 0;
    edit.data[edit.count++] = malloc(1);
    end_edit(1);
    verify(MP_VERIFY_EXACT);
    expect_tensor(1, NULL, "layers.1.experts.l1_weight",
                  "in model-00001-of-00001.safetensors, but not wanted there");
}

Test(verify_structure, finds_another_type_or_shape)
{
    begin_edit(0);
    edit.specs[0].dtype = MP_U8;
    end_edit(0);
    verify(MP_VERIFY_EXACT);
    expect_tensor(0, "layers.0", "layers.0.experts.l1_weight",
                  "U8 [3, 512, 192], expected I8 [3, 512, 192]");

    begin_edit(0);
    edit.specs[0].dtype = MP_I8;
    edit.shapes[5][1] = 512;
    edit.shapes[5][2] = 3;
    end_edit(0);
    verify(MP_VERIFY_STRUCTURE);
    expect_tensor(0, "mtp.0", "mtp.0.experts.l1_weight_sf",
                  "I32 [3, 512, 3], expected I32 [3, 3, 512]");
}

/* Slots beyond the end of a short tensor are not read. */
Test(verify_structure, finds_a_tensor_of_too_few_slots)
{
    begin_edit(1);
    edit.shapes[2][0] = 2;
    end_edit(1);
    verify(MP_VERIFY_EXACT);
    expect_count(2);
    expect(0, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1, "total_size");
    expect(1, MP_VERIFY_STRUCTURE, 1, "layers.0", -1, "layers.0.experts.l2_weight", -1,
           "I8 [2, 384, 128], expected I8 [3, 384, 128]");
    cr_expect_eq(report.slots, 3 * SLOTS);
}

/* One byte before the last tensor shifts its words. It is written as bytes, since no
 * writer would take it otherwise, and its entry is changed afterwards. */
Test(verify_structure, finds_a_tensor_that_is_not_aligned)
{
    static const char before[] = "\"U8\",\"shape\":[3,2,1536]";
    static const char after[] = "\"I32\",\"shape\":[3,2,384]";
    uint64_t length;
    int fd;

    begin_edit(0);
    edit.specs[8] = edit.specs[7];
    edit.data[8] = edit.data[7];
    memcpy(edit.shapes[8], (const uint64_t[]){3, 2, 1536}, 3 * sizeof(uint64_t));
    edit.specs[8].dtype = MP_U8;
    edit.specs[8].shape = edit.shapes[8];
    edit.shapes[9][0] = 1;
    edit.specs[7] = (mp_tensor_spec){strdup("byte"), MP_U8, 1, edit.shapes[9]};
    edit.data[7] = calloc(1, 1);
    edit.count = 9;
    end_edit(0);
    char *text = get_text(rank_file(0), &length);
    char *entry = memmem(text, length, before, sizeof before - 1);
    cr_assert_not_null(entry);
    succeed(mp_open_write(rank_file(0), &fd, &err));
    succeed(mp_pwrite_all(fd, after, sizeof after - 1, (uint64_t)(entry - text), "", &err));
    succeed(mp_file_close(fd, "", &err));
    free(text);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(3);
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, "total_size");
    expect(1, MP_VERIFY_STRUCTURE, 0, NULL, -1, "byte", -1, "not wanted there");
    expect(2, MP_VERIFY_STRUCTURE, 0, "mtp.0", -1, "mtp.0.experts.l2_weight_sf", -1,
           ", not at a multiple of 4");
}

Test(verify_structure, finds_layers_out_of_order)
{
    begin_edit(0);
    mp_tensor_spec spec = edit.specs[3];
    uint8_t *data = edit.data[3];
    memmove(edit.specs + 3, edit.specs + 4, 4 * sizeof spec);
    memmove(edit.data + 3, edit.data + 4, 4 * sizeof data);
    edit.specs[7] = spec;
    edit.data[7] = data;
    end_edit(0);
    verify(MP_VERIFY_EXACT);
    expect_count(4);
    expect(0, MP_VERIFY_STRUCTURE, 0, "mtp.0", -1, "mtp.0.experts.l1_weight", -1,
           "is before layers.0.experts.l2_weight_sf of an earlier layer");
}

Test(verify_structure, finds_a_listing_in_another_order)
{
    mp_manifest m;

    load_manifest(&m);
    mp_packed_tensor tensor = m.ranks[1].files[0].tensors[2];
    m.ranks[1].files[0].tensors[2] = m.ranks[1].files[0].tensors[3];
    m.ranks[1].files[0].tensors[3] = tensor;
    save_manifest(&m);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "tensor 2 is layers.0.experts.l2_weight, the manifest lists "
                        "layers.0.experts.l2_weight_sf");
}

Test(verify_structure, finds_a_listing_that_is_too_short)
{
    mp_manifest m;

    load_manifest(&m);
    mp_packed_file *file = &m.ranks[1].files[0];
    free(file->tensors[--file->num_tensors].name);
    save_manifest(&m);
    verify(MP_VERIFY_EXACT);
    expect_count(3);
    expect(0, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1,
           "model-00001-of-00001.safetensors: 8 tensors, the manifest lists 7");
    expect(1, MP_VERIFY_STRUCTURE, 1, NULL, -1, NULL, -1,
           MP_INDEX_NAME ": 8 tensors, the manifest lists 7");
    expect(2, MP_VERIFY_DIGEST, 1, "mtp.0", -1, "mtp.0.experts.l2_weight_sf", -1,
           "the manifest has no xxh3 of it");
}

/* ------------------------------------------------------------------------
 * Some ranks only
 */

TestSuite(verify_ranks, .fini = remove_pack);

Test(verify_ranks, checks_a_pack_of_some_ranks)
{
    make_scratch();
    pack_source(SOURCE, (mp_repack_options){.ep = 3, .redundant = 1, .ranks = "1"});
    verify(MP_VERIFY_EXACT);
    expect_count(0);
    cr_expect_eq(report.slots, 2 * 2);
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_DIGEST, .ranks = "1"};
    succeed(verify_with(options, 1));
    cr_expect_eq(report.tensors, 8);
    for (int i = 0; i < 2; i++) {
        options.ranks = i ? "1-2" : "0-1";
        cr_expect_eq(verify_with(options, 1), MP_ERR_USAGE);
        cr_expect_str_eq(err.message, i ? "list \"1-2\": rank 2 is not in this pack"
                                        : "list \"0-1\": rank 0 is not in this pack");
    }
}

/* ------------------------------------------------------------------------
 * Several files a rank
 */

TestSuite(verify_shards, .fini = remove_pack);

Test(verify_shards, checks_every_file)
{
    make_pack_of(300000);
    verify(MP_VERIFY_EXACT);
    expect_count(0);
    cr_expect_gt(report.files, 4);
    cr_expect_eq(report.tensors, 16);
}

/* What is in the file that is missing is not said to be missing once more. */
Test(verify_shards, names_only_the_file_that_is_missing)
{
    make_pack_of(300000);
    verify(MP_VERIFY_STRUCTURE);
    uint64_t files = report.files / 2;
    cr_assert_eq(unlink(at("rank-001/model-00002-of-%05d.safetensors", (int)files)), 0);
    verify(MP_VERIFY_EXACT);
    expect_structure(1, "model-00002-of-");
    cr_expect_lt(report.slots, 2 * 2 * SLOTS);
    cr_expect_gt(report.slots, 2 * SLOTS);
}

Test(verify_shards, finds_files_in_the_places_of_each_other)
{
    make_pack_of(150000);
    verify(MP_VERIFY_STRUCTURE);
    int files = (int)report.files / 2;
    /* Each holds the tensors of one layer's L1 weights, of the same size. */
    mp_manifest m;
    load_manifest(&m);
    size_t first = 0, second = 0;
    for (size_t f = 0; f < m.ranks[0].num_files; f++) {
        if (strcmp(m.ranks[0].files[f].tensors[0].name, "layers.0.experts.l1_weight") == 0)
            first = f + 1;
        if (strcmp(m.ranks[0].files[f].tensors[0].name, "mtp.0.experts.l1_weight") == 0)
            second = f + 1;
    }
    mp_manifest_release(&m);
    cr_assert(first > 0 && second > first);
    const char *one = at("rank-000/model-%05zu-of-%05d.safetensors", first, files);
    const char *other = at("rank-000/model-%05zu-of-%05d.safetensors", second, files);
    cr_assert_eq(rename(one, at("x")), 0);
    cr_assert_eq(rename(other, one), 0);
    cr_assert_eq(rename(at("x"), other), 0);
    verify(MP_VERIFY_STRUCTURE);
    cr_assert_gt(report.total_faults, 1);
    char detail[200];
    snprintf(detail, sizeof detail,
             "%s: tensor 0 is mtp.0.experts.l1_weight, the manifest lists "
             "layers.0.experts.l1_weight",
             mp_path_base(one));
    expect(0, MP_VERIFY_STRUCTURE, 0, NULL, -1, NULL, -1, detail);
}
