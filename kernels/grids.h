// The grids of the IQ formats: constants of ggml (MIT), kept as small as they get.
//
// An entry has the codes of its columns, the first one lowest: 2 bits for each of 8 columns (IQ2,
// IQ1), 4 bits for each of 4 columns (IQ3). A code is an index into the magnitudes below.
#pragma once

#include <stdint.h>

namespace edge_rt {

extern const uint16_t kGridIQ2XXS[256], kGridIQ2XS[512], kGridIQ2S[1024];
extern const uint16_t kGridIQ3XXS[256], kGridIQ3S[512];
extern const uint16_t kGridIQ1[2048];

static const int8_t kMagnitudesIQ2[4] = {8, 25, 43, 0};  // code 3 is in no entry
static const int8_t kValuesIQ1[4] = {-8, 0, 8, 0};
static const int8_t kMagnitudesIQ3XXS[16] = {4, 12, 20, 28, 36, 44, 52, 62};
static const int8_t kMagnitudesIQ3S[16] = {1, 3, 5, 7, 9, 11, 13, 15};

}  // namespace edge_rt
