/* Spikes in other forms: windows of tables and bytes for dot products; included by cuba.c. */

/* Tables: bits of every row of the window, [in_h][steps][out_w], kw * channels of them, from words of one group and plane. */
static void windows(const layer_t *l, int first, int last, uint8_t *out)
{
    const int T = l->steps;
    memset(out + (size_t)first * T * l->out_w, 0, (size_t)(last - first) * T * l->out_w);
    for (int y = first; y < last; y++)
        for (int kx = 0; kx < l->kw; kx++)
            for (int ox = 0; ox < l->out_w; ox++) {
                const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                if (x < 0 || x >= l->in_w) continue;
                const uint32_t *word = l->in + ((size_t)y * l->in_w + x) * T;
                uint8_t *to = out + (size_t)y * T * l->out_w + ox;
                for (int t = 0; t < T; t++) to[(size_t)t * l->out_w] |= (uint8_t)(word[t] << (kx * l->channels));
            }
}

/* The same from bytes 0 or 1 [steps][channels][in_h][in_w]. */
static void windows_of_bytes(const layer_t *l, const uint8_t *in, int first, int last, uint8_t *out)
{
    const int step = l->stride_x;
    memset(out + (size_t)first * l->steps * l->out_w, 0, (size_t)(last - first) * l->steps * l->out_w);
    for (int y = first; y < last; y++)
        for (int t = 0; t < l->steps; t++)
            for (int c = 0; c < l->channels; c++) {
                const uint8_t *row = in + (((size_t)t * l->channels + c) * l->in_h + y) * l->in_w;
                uint8_t *to = out + ((size_t)y * l->steps + t) * l->out_w;
                for (int kx = 0; kx < l->kw; kx++) {
                    const int shift = kx * l->dil_x - l->pad_x, from = shift < 0 ? (-shift + step - 1) / step : 0;
                    const int last = (l->in_w - 1 - shift) / step, until = l->in_w - 1 < shift ? 0 : last + 1 < l->out_w ? last + 1 : l->out_w;
                    const uint8_t bit = (uint8_t)(1 << (kx * l->channels + c));
                    if (step == 1)
                        for (int ox = from; ox < until; ox++) to[ox] |= (uint8_t)-row[ox + shift] & bit;
                    else
                        for (int ox = from; ox < until; ox++) to[ox] |= (uint8_t)-row[ox * step + shift] & bit;
                }
            }
}

#ifdef X86
/* `list_items` of cuba_events.h where bytes can be compressed: two words at a time. 64 bytes to spare. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt"), noinline)) static void list_items_compressed(
    const layer_t *l, int first, int last, size_t n, uint8_t *items, uint32_t *begin)
{
    const int T = l->steps, W = l->in_w, words = l->groups * l->planes;
    uint8_t places[64];
    for (int i = 0; i < 64; i++) places[i] = (uint8_t)i;
    const __m512i place = _mm512_loadu_si512(places);
    for (int y = first; y < last; y++)
        for (int t = 0; t < T; t++) {
            uint32_t *start = begin + ((size_t)y * T + t) * (W + 1);
            const uint32_t *word = l->in + (size_t)y * W * words * T + t;
            for (int x = 0; x < W; x++) {
                start[x] = (uint32_t)n;
                for (int i = 0; i < words; i += 2) {
                    uint64_t bits = *word;
                    word += T;
                    if (i + 1 < words) bits |= (uint64_t)*word << 32, word += T;
                    const __m512i rows = _mm512_add_epi8(place, _mm512_set1_epi8((char)(32 * i)));
                    _mm512_storeu_si512(items + n, _mm512_maskz_compress_epi8((__mmask64)bits, rows));
                    n += (size_t)_mm_popcnt_u64(bits);
                }
            }
            start[W] = (uint32_t)n;
        }
}

/* `list_events` of cuba_events.h likewise, 32 rows a word. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt"), noinline)) static uint32_t list_events_compressed(
    const layer_t *l, uint16_t *events, uint32_t *begin)
{
    const int T = l->steps, P = l->planes, words = dense_words(l);
    uint16_t places[32];
    for (int i = 0; i < 32; i++) places[i] = (uint16_t)i;
    const __m512i place = _mm512_loadu_si512(places);
    uint32_t n = 0, most = 0;
    for (int c = 0; c < words; c += CHUNK) {
        const int last = c + CHUNK < words ? c + CHUNK : words;
        for (int t = 0; t < T; t++)
            for (int p = 0; p < P; p++) {
                const uint32_t from = *begin++ = n;
                for (int i = c; i < last; i++) {
                    const uint32_t word = l->in[((size_t)i * P + p) * T + t];
                    const __m512i rows = _mm512_add_epi16(place, _mm512_set1_epi16((short)((i - c) * 32)));
                    _mm512_storeu_si512(events + n, _mm512_maskz_compress_epi16(word, rows));
                    n += (uint32_t)_mm_popcnt_u32(word);
                }
                most = n - from > most ? n - from : most;
            }
    }
    *begin = n;
    return most;
}

/* Words [pixels][groups][planes][steps] into bytes [pixels][steps][quads * 4], pixels first..last of them. */
__attribute__((target("avx2"))) static void expand(
    const uint32_t *words, int first, int last, int groups, int planes, int steps, int quads, uint8_t *out)
{
    for (int i = first; i < last; i++)
        for (int g = 0; g < groups; g++) {
            const uint32_t *word = words + ((size_t)i * groups + g) * planes * steps;
            const int many = quads * 4 - g * 32 < 32 ? quads * 4 - g * 32 : 32;
            for (int t = 0; t < steps; t++) {
                __m256i sum = _mm256_setzero_si256();
                for (int p = 0; p < planes; p++) {
                    const __m256i plane = _mm256_set1_epi8((char)(1 << p));
                    sum = _mm256_or_si256(sum, _mm256_and_si256(spread_bits(word[(size_t)p * steps + t]), plane));
                }
                uint8_t *to = out + ((size_t)i * steps + t) * quads * 4 + g * 32;
                if (many == 32) {
                    _mm256_storeu_si256((__m256i *)to, sum);
                } else {
                    uint8_t all[32];
                    _mm256_storeu_si256((__m256i *)all, sum);
                    memcpy(to, all, (size_t)many);
                }
            }
        }
}
#endif
