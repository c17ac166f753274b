/* What one core of this machine can do at best, for roofline.py: additions of vectors of int16 that lie in L1, one load each, and
   steps of CUBA neurons whose states stay in registers, in the float arithmetic of hw_sim/engines/csrc/cuba_lanes.h without its bias,
   its wrap and its record of the largest sum. Prints JSON: the best of many short tries, per second. */

#define _POSIX_C_SOURCE 199309L
#include <fenv.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define ROWS 256 /* 16 KiB at most */
#define TRIES 40
#define PASSES 4000
#define STEPS 64

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LEVEL "AVX-512"
#define WIDTH 16
#define VECTORS 8 /* independent ones: throughput counts, not latency */
typedef __m512 vec;
#define WIDEN(p) _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_load_si256((const __m256i *)(p))))
#define SPLAT(x) _mm512_set1_ps(x)
#define TRUNCATE(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define MUL_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
#define CLIP(a, low, high) _mm512_max_ps(_mm512_min_ps(a, high), low)
#define FIRE(v, threshold, bits)                                              \
    do {                                                                      \
        const __mmask16 fires = _mm512_cmp_ps_mask(v, threshold, _CMP_GT_OQ); \
        v = _mm512_maskz_mov_ps((__mmask16)~fires, v);                        \
        bits = (uint32_t)fires;                                               \
    } while (0)
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LEVEL "AVX2"
#define WIDTH 8
#define VECTORS 4
typedef __m256 vec;
#define WIDEN(p) _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_load_si128((const __m128i *)(p))))
#define SPLAT(x) _mm256_set1_ps(x)
#define TRUNCATE(a) _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define MUL_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define CLIP(a, low, high) _mm256_max_ps(_mm256_min_ps(a, high), low)
#define FIRE(v, threshold, bits)                                       \
    do {                                                               \
        const __m256 fires = _mm256_cmp_ps(v, threshold, _CMP_GT_OQ);  \
        v = _mm256_andnot_ps(fires, v);                                \
        bits = (uint32_t)_mm256_movemask_ps(fires);                    \
    } while (0)
#else
#define LEVEL "the compiler's vectors"
#define WIDTH 4
#define VECTORS 4
typedef float vec __attribute__((vector_size(16)));
typedef int32_t vec_int __attribute__((vector_size(16)));
typedef int16_t vec_short __attribute__((vector_size(8)));
#define WIDEN(p) __builtin_convertvector(*(const vec_short *)(p), vec)
#define SPLAT(x) ((vec){0} + (x))
#define TRUNCATE(a) __builtin_convertvector(__builtin_convertvector(a, vec_int), vec)
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
#define PICK(where, a, b) ((vec)(((vec_int)(a) & (where)) | ((vec_int)(b) & ~(where))))
static inline vec clip(vec a, vec low, vec high)
{
    const vec below = PICK(a < high, a, high);
    return PICK(below > low, below, low);
}
#define CLIP(a, low, high) clip(a, low, high)
#define FIRE(v, threshold, bits)                             \
    do {                                                     \
        const vec_int fires = (v) > (threshold);             \
        v = PICK(fires, (vec){0}, v);                        \
        bits = 0;                                            \
        for (int b = 0; b < 4; b++) bits |= (fires[b] & 1) << b; \
    } while (0)
#endif

/* WIDTH neurons of 4 bytes fill a register: so many int16. A row is one register or several. */
#define LANES (2 * WIDTH)
typedef int16_t row __attribute__((vector_size(2 * LANES)));
static row rows[ROWS];
static int16_t sums[STEPS][VECTORS * WIDTH] __attribute__((aligned(64)));
static uint32_t fired[STEPS][VECTORS];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four sums, so that no addition waits for another. */
__attribute__((noinline)) static void add(const row *from, row *to)
{
    row a = to[0], b = to[1], c = to[2], d = to[3];
    for (int i = 0; i < ROWS; i += 8) {
        a += from[i], b += from[i + 1], c += from[i + 2], d += from[i + 3];
        a += from[i + 4], b += from[i + 5], c += from[i + 6], d += from[i + 7];
    }
    to[0] = a, to[1] = b, to[2] = c, to[3] = d;
}

__attribute__((noinline)) static void update(void)
{
    const vec keep_u = SPLAT(0.75f), keep_v = SPLAT(0.96875f), threshold = SPLAT(60000.0f), unit = SPLAT(64.0f);
    const vec top = SPLAT(8388607.0f), bottom = SPLAT(-8388607.0f);
    vec u[VECTORS], v[VECTORS];
    for (int h = 0; h < VECTORS; h++) u[h] = v[h] = SPLAT(0.0f);
    for (int t = 0; t < STEPS; t++) {
#pragma GCC unroll 8
        for (int h = 0; h < VECTORS; h++) {
            u[h] = MUL_ADD(WIDEN(sums[t] + h * WIDTH), unit, TRUNCATE(u[h] * keep_u));
            v[h] = CLIP(TRUNCATE(v[h] * keep_v) + u[h], bottom, top);
            FIRE(v[h], threshold, fired[t][h]);
        }
    }
}

int main(void)
{
    static row total[4];
    double adds = 1e9, updates = 1e9;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < LANES; j++) rows[i][j] = (int16_t)((i * 37 + j * 11) % 201 - 100);
    for (int t = 0; t < STEPS; t++)
        for (int j = 0; j < VECTORS * WIDTH; j++) sums[t][j] = (int16_t)((t * 29 + j * 53) % 1001 - 480);
    fesetround(FE_TOWARDZERO);
    for (int try = 0; try < TRIES; try++) {
        const double start = now();
        for (int i = 0; i < PASSES; i++) {
            add(rows, total);
            __asm__ volatile("" ::: "memory");
        }
        const double middle = now();
        for (int i = 0; i < PASSES / 4; i++) {
            update();
            __asm__ volatile("" ::: "memory");
        }
        const double end = now();
        if (middle - start < adds) adds = middle - start;
        if (end - middle < updates) updates = end - middle;
    }
    long check = 0;
    for (int i = 0; i < 4; i++) check += total[i][0];
    for (int t = 0; t < STEPS; t++)
        for (int h = 0; h < VECTORS; h++) check += __builtin_popcount(fired[t][h]);
    printf("{\"level\": \"%s\", \"adds_per_s\": %.6g, \"neuron_steps_per_s\": %.6g, \"check\": %ld}\n", LEVEL,
        (double)PASSES * ROWS * LANES / adds, PASSES / 4 * (double)STEPS * VECTORS * WIDTH / updates, check);
    return 0;
}
