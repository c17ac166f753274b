/* Spikes as bits and as lists; included by cuba.c. */

#define PACKED 64

/* Bytes 0 or 1 [steps][channels] into words [groups][steps], eight at a time. */
static void pack_flat(const uint8_t *x, int steps, int channels, uint32_t *words)
{
    for (int t = 0; t < steps; t++) {
        const uint8_t *row = x + (size_t)t * channels;
        for (int from = 0; from < channels; from += 32) {
            uint32_t word = 0;
            int c = from;
            for (; c + 8 <= channels && c < from + 32; c += 8) {
                uint64_t eight = 0;
                for (int i = 0; i < 8; i++) eight |= (uint64_t)row[c + i] << (8 * i);
                word |= (uint32_t)(eight * 0x0102040810204080u >> 56) << (c - from);
            }
            for (; c < channels && c < from + 32; c++) word |= (uint32_t)row[c] << (c - from);
            words[(size_t)(from / 32) * steps + t] = word;
        }
    }
}

/* Payloads [steps][channels][pixels] of one or two bytes into words [pixels][groups][planes][steps]. */
static void pack(const uint8_t *x, int bytes, int steps, int channels, int pixels, int planes, uint32_t *words)
{
    const int groups = (channels + 31) / 32;
    if (pixels == 1 && planes == 1 && bytes == 1) {
        pack_flat(x, steps, channels, words);
        return;
    }
    const size_t per_pixel = (size_t)groups * planes * steps;
    memset(words, 0, per_pixel * pixels * sizeof *words);
    for (int from = 0; from < pixels; from += PACKED) { /* few enough that their words stay near */
        const int to = from + PACKED < pixels ? from + PACKED : pixels;
        for (int c = 0; c < channels; c++) {
            for (int p = 0; p < planes; p++) {
                uint32_t *word = words + ((size_t)(c / 32) * planes + p) * steps;
                for (int t = 0; t < steps; t++) {
                    const uint8_t *row = x + (((size_t)t * channels + c) * pixels) * bytes + (bytes == 2 ? p / 8 : 0);
                    for (int i = from; i < to; i++)
                        word[i * per_pixel + t] |= (uint32_t)(row[(size_t)i * bytes] >> (p % 8) & 1) << (c % 32);
                }
            }
        }
    }
}

/* Words [steps] of up to four pixels to the three planes of their sum 0..4. */
static void pool_pixel(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *d, uint32_t *to, int steps)
{
    for (int t = 0; t < steps; t++) {
        const uint32_t ab = a[t] ^ b[t], cd = c[t] ^ d[t], two = a[t] & b[t], four = c[t] & d[t], both = ab & cd;
        to[t] = ab ^ cd;
        to[steps + t] = two ^ four ^ both;
        to[2 * steps + t] = (two & four) | (both & (two ^ four));
    }
}

/* 2x2 sum pooling of words [h * w][groups][steps] to planes [ceil(h/2) * ceil(w/2)][groups][3][steps]; beyond is silence. */
static void pool(const uint32_t *in, int h, int w, int groups, int steps, const uint32_t *silence, uint32_t *out)
{
    const int wide = (w + 1) / 2;
    for (int y = 0; y < (h + 1) / 2; y++)
        for (int x = 0; x < wide; x++)
            for (int g = 0; g < groups; g++) {
                const uint32_t *from[4];
                for (int i = 0; i < 4; i++) {
                    const int iy = 2 * y + i / 2, ix = 2 * x + i % 2;
                    from[i] = iy < h && ix < w ? in + (((size_t)iy * w + ix) * groups + g) * steps : silence;
                }
                pool_pixel(from[0], from[1], from[2], from[3], out + ((((size_t)y * wide + x) * groups + g) * 3) * steps, steps);
            }
}

/* Tables: bits of every row of the window, [in_h][out_w][steps], kw * channels of them, from words of one group and plane. */
static void windows(const layer_t *l, uint8_t *out)
{
    const int T = l->steps;
    for (int y = 0; y < l->in_h; y++)
        for (int ox = 0; ox < l->out_w; ox++) {
            uint8_t *to = out + ((size_t)y * l->out_w + ox) * T;
            memset(to, 0, T);
            for (int kx = 0; kx < l->kw; kx++) {
                const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                if (x < 0 || x >= l->in_w) continue;
                const uint32_t *word = l->in + ((size_t)y * l->in_w + x) * T;
                const int shift = kx * l->channels;
                for (int t = 0; t < T; t++) to[t] |= (uint8_t)(word[t] << shift);
            }
        }
}

static uint64_t bytes_of[256]; /* positions of the bits of a byte, a byte each */

/* Call once, before any thread. */
void knarr_start(void)
{
    for (int i = 0; i < 256; i++) {
        int n = 0;
        for (int b = 0; b < 8; b++)
            if (i >> b & 1) bytes_of[i] |= (uint64_t)b << (8 * n++);
    }
}

/* Lists: rows of weights of what is set, [pixels][steps] of them one after the other; `items` has room for all and 16 more. */
static size_t list_items(const uint32_t *words, int pixels, int groups, int planes, int steps, uint8_t *items, uint32_t *begin)
{
    size_t n = 0;
    for (int i = 0; i < pixels; i++)
        for (int t = 0; t < steps; t++) {
            begin[(size_t)i * steps + t] = (uint32_t)n;
            for (int g = 0; g < groups * planes; g++) {
                const uint32_t word = words[((size_t)i * groups * planes + g) * steps + t];
                if (!word) continue;
                const int row = g % planes * groups * 32 + g / planes * 32;
                for (int b = 0; b < 4; b++) {
                    const unsigned byte = word >> (8 * b) & 255;
                    const uint64_t rows = bytes_of[byte] + 0x0101010101010101u * (uint64_t)(row + 8 * b);
                    memcpy(items + n, &rows, 8);
                    n += __builtin_popcount(byte);
                }
            }
        }
    begin[(size_t)pixels * steps] = (uint32_t)n;
    return n;
}

/* Dense: rows of weights of every step and plane; `begin` gets steps * planes + 1 entries. */
static size_t list_events(const uint32_t *words, int pixels, int groups, int planes, int steps, int32_t *events, uint32_t *begin)
{
    size_t n = 0;
    for (int t = 0; t < steps; t++)
        for (int p = 0; p < planes; p++) {
            begin[t * planes + p] = (uint32_t)n;
            for (int i = 0; i < pixels * groups; i++) {
                uint32_t word = words[((size_t)i * planes + p) * steps + t];
                for (; word; word &= word - 1) events[n++] = i * 32 + __builtin_ctz(word);
            }
        }
    begin[steps * planes] = (uint32_t)n;
    return n;
}

/* Words [pixels][groups][steps] into bytes [steps][channels][pixels]. */
static void unpack(const uint32_t *words, int steps, int channels, int pixels, uint8_t *out)
{
    const size_t per_pixel = (size_t)((channels + 31) / 32) * steps;
    for (int from = 0; from < pixels; from += PACKED) {
        const int to = from + PACKED < pixels ? from + PACKED : pixels;
        for (int c = 0; c < channels; c++)
            for (int t = 0; t < steps; t++) {
                uint8_t *row = out + ((size_t)t * channels + c) * pixels;
                const uint32_t *word = words + (size_t)(c / 32) * steps + t;
                for (int i = from; i < to; i++) row[i] = (uint8_t)(word[i * per_pixel] >> (c % 32) & 1);
            }
    }
}
