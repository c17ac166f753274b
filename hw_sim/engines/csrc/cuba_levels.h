/* The operations of cuba_lanes.h for every instruction set; included by cuba.c. */

/* Bit j of word i becomes bit i of word j (Hacker's Delight, 7-3). */
static void transpose_bits(uint32_t *a)
{
    uint32_t mask = 0x0000ffff;
    for (int j = 16; j; j >>= 1, mask ^= mask << j)
        for (int k = 0; k < 32; k = ((k | j) + 1) & ~j) {
            const uint32_t swap = (a[k] >> j ^ a[k | j]) & mask;
            a[k] ^= swap << j;
            a[k | j] ^= swap;
        }
}

/* KNARR_PLAIN (CFLAGS=-DKNARR_PLAIN at the build) leaves the compiler's own vectors alone, as processors other than x86-64
   have them; so it is under macOS, where no instructions of x86-64 were ever tried. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__APPLE__) && !defined(KNARR_PLAIN)
#define X86
#include <immintrin.h>

static inline int four_of(const uint8_t *p)
{
    int four;
    memcpy(&four, p, 4);
    return four;
}

/* Compilers would rather load a row again for every use, and loads are what there are too few of. */
__attribute__((target("avx2"))) static inline __m256i held_256(__m256i a)
{
    __asm__("" : "+x"(a));
    return a;
}

__attribute__((target("avx512f"))) static inline __m512i held_512(__m512i a)
{
    __asm__("" : "+v"(a));
    return a;
}

/* Bit `plane` of 32 bytes. */
__attribute__((target("avx2"))) static inline uint32_t word_of(const uint8_t *p, int plane)
{
    const __m256i at_top = _mm256_sll_epi16(_mm256_loadu_si256((const __m256i *)p), _mm_cvtsi32_si128(7 - plane));
    return (uint32_t)_mm256_movemask_epi8(at_top);
}

/* 32 bits as bytes of all ones or zeros. */
__attribute__((target("avx2"))) static inline __m256i spread_bits(uint32_t word)
{
    const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)word), place), bit), bit);
}

__attribute__((target("avx2"))) static inline void bytes_to(uint8_t *to, uint32_t word)
{
    _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(spread_bits(word), _mm256_set1_epi8(1)));
}

__attribute__((target("avx2"))) static inline void spread_eight(uint16_t *to, const uint64_t *from, int base)
{
    const __m128i eight = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)from));
    _mm_storeu_si128((__m128i *)to, _mm_add_epi16(eight, _mm_set1_epi16((short)base)));
}

/* How often each bit is set in words [steps], added to `to` [32]. */
__attribute__((target("avx2"))) static inline void word_sums(const uint32_t *words, int steps, uint32_t *to)
{
    for (int t = 0; t < steps;) {
        const int last = steps - t < 255 ? steps : t + 255; /* as many as bytes hold */
        __m256i sums = _mm256_setzero_si256();
        for (; t < last; t++) sums = _mm256_sub_epi8(sums, spread_bits(words[t]));
        uint8_t found[32];
        _mm256_storeu_si256((__m256i *)found, sums);
        for (int i = 0; i < 32; i++) to[i] += found[i];
    }
}

/* Bit t says whether word t of up to 32 is not 0. */
__attribute__((target("avx2"))) static inline uint32_t nonzero_bits(const uint32_t *words, int n)
{
    uint32_t bits = 0;
    int t = 0;
    for (; t + 8 <= n; t += 8) {
        const __m256i silent = _mm256_cmpeq_epi32(_mm256_loadu_si256((const __m256i *)(words + t)), _mm256_setzero_si256());
        bits |= (uint32_t)(~_mm256_movemask_ps(_mm256_castsi256_ps(silent)) & 255) << t;
    }
    for (; t < n; t++) bits |= (uint32_t)(words[t] != 0) << t;
    return bits;
}

/* `add_bytes` of cuba_events.h for two blocks, whose rows fill a register. */
__attribute__((target("avx512f,avx512bw"))) static inline void block_pairs(
    const uint8_t *weight, const uint16_t *events, uint32_t n, int16_t *first, int16_t *second)
{
    __m512i both = _mm512_setzero_si512(), high = both;
    UNROLL for (uint32_t at = 0; at < n; at++) {
        const __m512i pairs = _mm512_loadu_si512(weight + (size_t)events[at] * 2 * LANES);
        both = _mm512_add_epi16(both, pairs);
        high = _mm512_add_epi16(high, _mm512_srai_epi16(pairs, 8));
    }
    const __m512i offset = _mm512_set1_epi16((short)(128 * n));
    const __m512i low = _mm512_sub_epi16(_mm512_sub_epi16(both, _mm512_slli_epi16(high, 8)), offset);
    _mm256_storeu_si256((__m256i *)first, _mm512_castsi512_si256(low));
    _mm256_storeu_si256((__m256i *)(first + 16), _mm512_castsi512_si256(high));
    _mm256_storeu_si256((__m256i *)second, _mm512_extracti64x4_epi64(low, 1));
    _mm256_storeu_si256((__m256i *)(second + 16), _mm512_extracti64x4_epi64(high, 1));
}

/* Bits of four masks of eight lanes. */
__attribute__((target("avx2"))) static inline uint32_t four_masks(const __m256 *m)
{
    const __m256i low = _mm256_packs_epi32(_mm256_castps_si256(m[0]), _mm256_castps_si256(m[1]));
    const __m256i high = _mm256_packs_epi32(_mm256_castps_si256(m[2]), _mm256_castps_si256(m[3]));
    const __m256i all = _mm256_packs_epi16(low, high);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

/* The same for both: rows of bytes are 32 wide whatever the rest. */
#define WORD_OF(p, plane) word_of(p, plane)
#define WORD_SUMS(words, steps, to) word_sums(words, steps, to)
#define NONZERO_BITS(words, n) nonzero_bits(words, n)
#define BYTES_OF(to, word) bytes_to(to, word)
#define ROW __m256i
#define ROWS 1
#define ROW_ZERO() _mm256_setzero_si256()
#define ROW_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ROW_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define ROW_ADD(a, b) _mm256_add_epi16(a, b)
#define ROW_HIGH(a) _mm256_srai_epi16(a, 8)
#define ROW_LOW(both, high, more) _mm256_sub_epi16(_mm256_sub_epi16(both, _mm256_slli_epi16(high, 8)), _mm256_set1_epi16(more))
#define SPREAD_EIGHT(to, from, base) spread_eight(to, from, base)
#define SPREAD(to, from, base) \
    _mm256_storeu_si256((__m256i *)(to), _mm256_add_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from))), _mm256_set1_epi16(base)))

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi")))
#define WIDTH 16
#define ACCS 1
#define ACC __m512i
#define HALF __m512
#define SUM __m512i
#define MASK __mmask16
#define ACC_ZERO() _mm512_setzero_si512()
#define ACC_ADD(a, p) _mm512_add_epi16(a, _mm512_loadu_si512(p))
#define ACC_LOAD(p) _mm512_loadu_si512(p)
#define ACC_ABS(a) _mm512_abs_epi16(a)
#define ACC_MAX(a, b) _mm512_max_epi16(a, b)
#define HELD(a) held_512(a)
#define FOUR(p) _mm512_set1_epi32(four_of(p))
#define DOT(a, x, w) _mm512_add_epi16(a, _mm512_maddubs_epi16(x, w))
#define DOT_SUM(a) _mm512_madd_epi16(a, _mm512_set1_epi16(1))
#define SUM_ADD(a, b) _mm512_add_epi32(a, b)
#define ACC_STORE(p, a) _mm512_storeu_si512(p, a)
#define SUM_ZERO() _mm512_setzero_si512()
#define SUM_MAX(a, b) _mm512_max_epi32(a, b)
#define SUM_ABS(a) _mm512_abs_epi32(a)
#define SUM_LOAD(p) _mm512_loadu_si512(p)
#define SUM_STORE(p, a) _mm512_storeu_si512(p, a)
#define WIDEN(p) _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(p)))
#define TO_FLOAT(a) _mm512_cvtepi32_ps(a)
#define TO_INT(a) _mm512_cvttps_epi32(a)
#define SPLAT(x) _mm512_set1_ps(x)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, a) _mm512_storeu_ps(p, a)
#define ADD(a, b) _mm512_add_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define MUL_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MIN(a, b) _mm512_min_ps(a, b)
#define MAX(a, b) _mm512_max_ps(a, b)
#define TRUNCATE(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ABOVE(a, b) _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)
#define NOT_ABOVE(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)
#define ADD_WHERE(m, a, b) _mm512_mask_add_ps(a, m, a, b)
#define ZERO_WHERE(m, a) _mm512_maskz_mov_ps((__mmask16)~(m), a)
#define BITS(m) ((uint32_t)(m))
#define ALL_BITS(m) ((uint32_t)(m)[0] | (uint32_t)(m)[1] << 16)
#define EVEN(a) _mm512_madd_epi16(a, _mm512_set1_epi32(1))
#define ODD(a) _mm512_srai_epi32(a, 16)
#define TWO_PIXELS 1
#define BLOCK_PAIRS(weight, events, n, first, second) block_pairs(weight, events, n, first, second)
#include "cuba_lanes.h"
#include "cuba_undef.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma,popcnt,bmi")))
#define WIDTH 8
#define ACCS 2
#define ACC __m256i
#define HALF __m256
#define SUM __m256i
#define MASK __m256
#define ACC_ZERO() _mm256_setzero_si256()
#define ACC_ADD(a, p) _mm256_add_epi16(a, _mm256_loadu_si256((const __m256i *)(p)))
#define ACC_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ACC_ABS(a) _mm256_abs_epi16(a)
#define ACC_MAX(a, b) _mm256_max_epi16(a, b)
#define HELD(a) held_256(a)
#define FOUR(p) _mm256_set1_epi32(four_of(p))
#define DOT(a, x, w) _mm256_add_epi16(a, _mm256_maddubs_epi16(x, w))
#define DOT_SUM(a) _mm256_madd_epi16(a, _mm256_set1_epi16(1))
#define SUM_ADD(a, b) _mm256_add_epi32(a, b)
#define ACC_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define SUM_ZERO() _mm256_setzero_si256()
#define SUM_MAX(a, b) _mm256_max_epi32(a, b)
#define SUM_ABS(a) _mm256_abs_epi32(a)
#define SUM_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define SUM_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define WIDEN(p) _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(p)))
#define TO_FLOAT(a) _mm256_cvtepi32_ps(a)
#define TO_INT(a) _mm256_cvttps_epi32(a)
#define SPLAT(x) _mm256_set1_ps(x)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, a) _mm256_storeu_ps(p, a)
#define ADD(a, b) _mm256_add_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
#define MUL_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MIN(a, b) _mm256_min_ps(a, b)
#define MAX(a, b) _mm256_max_ps(a, b)
#define TRUNCATE(a) _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ABOVE(a, b) _mm256_cmp_ps(a, b, _CMP_GT_OQ)
#define NOT_ABOVE(a, b) _mm256_cmp_ps(a, b, _CMP_LE_OQ)
#define ADD_WHERE(m, a, b) _mm256_add_ps(a, _mm256_and_ps(m, b))
#define ZERO_WHERE(m, a) _mm256_andnot_ps(m, a)
#define BITS(m) ((uint32_t)_mm256_movemask_ps(m))
#define ALL_BITS(m) four_masks(m)
#define EVEN(a) _mm256_madd_epi16(a, _mm256_set1_epi32(1))
#define ODD(a) _mm256_srai_epi32(a, 16)
#define TWO_PIXELS 0
#include "cuba_lanes.h"
#include "cuba_undef.h"
#undef WORD_OF
#undef WORD_SUMS
#undef NONZERO_BITS
#undef BYTES_OF
#undef ROW
#undef ROWS
#undef ROW_ZERO
#undef ROW_LOAD
#undef ROW_STORE
#undef ROW_ADD
#undef ROW_HIGH
#undef ROW_LOW
#undef SPREAD_EIGHT
#undef SPREAD
#endif

/* Any processor: the compiler's own vectors. */
typedef int16_t plain_acc __attribute__((vector_size(16)));
typedef uint16_t plain_wrapping __attribute__((vector_size(16))); /* where sums may pass 16 bits on the way */
typedef uint32_t plain_shifting __attribute__((vector_size(16)));
typedef int16_t plain_four __attribute__((vector_size(8)));
typedef int32_t plain_sum __attribute__((vector_size(16)));
typedef float plain_half __attribute__((vector_size(16)));

#define PLAIN_LOAD(type, name)            \
    static inline type name(const void *p) \
    {                                     \
        type a;                           \
        memcpy(&a, p, sizeof a);          \
        return a;                         \
    }
PLAIN_LOAD(plain_acc, plain_load_acc)
PLAIN_LOAD(plain_four, plain_load_four)
PLAIN_LOAD(plain_sum, plain_load_sum)
PLAIN_LOAD(plain_half, plain_load_half)

static inline void plain_spread(uint16_t *to, const uint8_t *from, uint16_t base)
{
    for (int i = 0; i < 16; i++) to[i] = (uint16_t)(from[i] + base);
}

static inline void plain_spread_eight(uint16_t *to, const uint64_t *from, int base)
{
    for (int i = 0; i < 8; i++) to[i] = (uint16_t)((*from >> (8 * i) & 255) + (unsigned)base);
}

static inline uint32_t plain_word_of(const uint8_t *p, int plane)
{
    uint32_t word = 0;
    for (int c = 0; c < 32; c++) word |= (uint32_t)(p[c] >> plane & 1) << c;
    return word;
}

static inline void plain_bytes_to(uint8_t *to, uint32_t word)
{
    for (int c = 0; c < 32; c++) to[c] = (uint8_t)(word >> c & 1);
}

static inline void plain_word_sums(const uint32_t *words, int steps, uint32_t *to)
{
    for (int t = 0; t < steps; t++)
        for (int i = 0; i < 32; i++) to[i] += words[t] >> i & 1;
}

static inline uint32_t plain_nonzero_bits(const uint32_t *words, int n)
{
    uint32_t bits = 0;
    for (int t = 0; t < n; t++) bits |= (uint32_t)(words[t] != 0) << t;
    return bits;
}

static inline plain_sum plain_pick(plain_sum where, plain_sum a, plain_sum b) { return (a & where) | (b & ~where); }

static inline plain_acc plain_pick_acc(plain_acc where, plain_acc a, plain_acc b) { return (a & where) | (b & ~where); }

static inline plain_half plain_pick_half(plain_sum where, plain_half a, plain_half b)
{
    return (plain_half)plain_pick(where, (plain_sum)a, (plain_sum)b);
}

static inline uint32_t plain_bits(plain_sum where)
{
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) bits |= (uint32_t)(where[i] & 1) << i;
    return bits;
}

static inline uint32_t plain_all_bits(const plain_sum *m)
{
    uint32_t bits = 0;
    for (int h = 0; h < 8; h++) bits |= plain_bits(m[h]) << (4 * h);
    return bits;
}

#define NAME(x) x##_plain
#define TARGET
#define WIDTH 4
#define ACCS 4
#define ACC plain_acc
#define HALF plain_half
#define SUM plain_sum
#define MASK plain_sum
#define ACC_ZERO() ((plain_acc){0})
#define ACC_ADD(a, p) ((plain_acc)((plain_wrapping)(a) + (plain_wrapping)plain_load_acc(p)))
#define ACC_LOAD(p) plain_load_acc(p)
#define ACC_ABS(a) plain_pick_acc((a) > 0, a, -(a))
#define ACC_MAX(a, b) plain_pick_acc((a) > (b), a, b)
#define WORD_OF(p, plane) plain_word_of(p, plane)
#define WORD_SUMS(words, steps, to) plain_word_sums(words, steps, to)
#define NONZERO_BITS(words, n) plain_nonzero_bits(words, n)
#define BYTES_OF(to, word) plain_bytes_to(to, word)
#define ROW plain_acc
#define ROWS 2
#define ROW_ZERO() ((plain_acc){0})
#define ROW_LOAD(p) plain_load_acc(p)
#define ROW_STORE(p, a)                         \
    do {                                        \
        const plain_acc stored = (a);           \
        memcpy(p, &stored, sizeof stored);      \
    } while (0)
#define ROW_ADD(a, b) ((plain_acc)((plain_wrapping)(a) + (plain_wrapping)(b)))
#define ROW_HIGH(a) ((a) >> 8)
#define ROW_LOW(both, high, more) ((plain_acc)((plain_wrapping)(both) - ((plain_wrapping)(high) << 8) - (uint16_t)(more)))
#define SPREAD_EIGHT(to, from, base) plain_spread_eight(to, from, base)
#define ACC_STORE(p, a) memcpy(p, &(a), sizeof(plain_acc))
#define SUM_ADD(a, b) ((a) + (b))
#define SUM_ZERO() ((plain_sum){0})
#define SUM_MAX(a, b) plain_pick((a) > (b), a, b)
#define SUM_ABS(a) plain_pick((a) > 0, a, -(a))
#define SUM_LOAD(p) plain_load_sum(p)
#define SUM_STORE(p, a)                   \
    do {                                  \
        const plain_sum stored = (a);     \
        memcpy(p, &stored, sizeof stored); \
    } while (0)
#define WIDEN(p) __builtin_convertvector(plain_load_four(p), plain_sum)
#define SPREAD(to, from, base) plain_spread(to, from, base)
#define TO_FLOAT(a) __builtin_convertvector(a, plain_half)
#define TO_INT(a) __builtin_convertvector(a, plain_sum)
#define SPLAT(x) ((plain_half){0} + (x))
#define LOAD(p) plain_load_half(p)
#define STORE(p, a)                          \
    do {                                     \
        const plain_half stored = (a);       \
        memcpy(p, &stored, sizeof stored);   \
    } while (0)
#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
#define MIN(a, b) plain_pick_half((a) < (b), a, b)
#define MAX(a, b) plain_pick_half((a) > (b), a, b)
#define TRUNCATE(a) TO_FLOAT(TO_INT(a))
#define ABOVE(a, b) ((a) > (b))
#define NOT_ABOVE(a, b) ((a) <= (b))
#define ADD_WHERE(m, a, b) ((a) + plain_pick_half(m, b, (plain_half){0}))
#define ZERO_WHERE(m, a) plain_pick_half(m, (plain_half){0}, a)
#define BITS(m) plain_bits(m)
#define ALL_BITS(m) plain_all_bits(m)
#define EVEN(a) ((plain_sum)((plain_shifting)(a) << 16) >> 16)
#define ODD(a) ((plain_sum)(a) >> 16)
#define TWO_PIXELS 0
#include "cuba_lanes.h"
#include "cuba_undef.h"
