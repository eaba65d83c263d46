/* SPDX-License-Identifier: Apache-2.0 */
/* engine/layer_forms.h - which form the experts of each layer have, by lists of modules. */
#ifndef MP_ENGINE_LAYER_FORMS_H
#define MP_ENGINE_LAYER_FORMS_H

#include <jansson.h>

#include "engine/backend.h"

/* How experts are stored, in the words of a quantization config. */
typedef struct mp_form_word {
    bool known;
    bool plain;       /* not quantized */
    mp_scheme scheme; /* where known */
    char name[64];    /* as the config calls it */
} mp_form_word;

mp_form_word mp_form_known(mp_scheme scheme);
mp_form_word mp_form_unknown(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What a quant_algo of ModelOpt stands for. */
mp_form_word mp_form_of_algorithm(const char *algorithm);

/* Most forms that the layers of a model have; more are not told apart. */
#define MP_LAYER_FORMS 16

/* Names that the experts of a layer go by, in lists of modules. */
#define MP_LAYER_NAMES 6
typedef char mp_module_name[128];

/* Of each decoder layer the index of its form; form 0 is the plain one. */
typedef struct mp_layer_forms {
    const mp_config *config;
    uint64_t num_layers; /* 0 where config.json has no sound number */
    unsigned char *of;   /* [num_layers] */
    mp_module_name (*names)[MP_LAYER_NAMES];
    mp_form_word forms[MP_LAYER_FORMS];
    size_t count;
    const char *plain_from; /* the list that says that layers are plain; null: none does */
} mp_layer_forms;

/* All layers plain. MP_ERR_IO without memory. */
int mp_layer_forms_init(mp_layer_forms *forms, const mp_config *config, const mp_form_word *plain,
                        mp_error *err);

/* Reads quant_algo with its exceptions, quantized_layers, or the groups of compressed-tensors. */
void mp_layer_forms_read(mp_layer_forms *forms, const json_t *quantization);

/* The form of all layers with experts; where they differ false, and a word that names two. */
bool mp_layer_forms_same(const mp_layer_forms *forms, mp_form_word *word);

void mp_layer_forms_release(mp_layer_forms *forms);

#endif
