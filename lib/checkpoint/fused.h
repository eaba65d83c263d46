/* checkpoint/fused.h - tensors that hold all experts of a layer, as experts. */
#ifndef MP_CHECKPOINT_FUSED_H
#define MP_CHECKPOINT_FUSED_H

#include <moepack/model.h>

/* Where a layer's experts are fused: settles how, and fills layer->experts with slices.
 * What does not fit together is listed as a problem. */
int mp_layer_unfuse(mp_catalog *catalog, mp_moe_layer *layer, mp_error *err);

#endif
