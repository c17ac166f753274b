/* What the threads of a team share while they work on a sample, and how they wait for each other; included by cuba.c. */

/* A layer of a network, and where what is recorded of it goes: [samples][steps]... or NULL. */
typedef struct {
    layer_t layer;   /* its pointers to inputs, lists and outputs are filled in here; states, `fired`, `sent` are [samples]... */
    shift_t shift;   /* before the layer; no pairs: no delays, or those of `layer.delays` */
    int32_t pool;    /* 2x2 sum pooling of what arrives, map_h * map_w pixels of it */
    int32_t map_h, map_w;
    int32_t arriving; /* channels, before they are moved in time */
    uint8_t *spikes; /* [samples][steps][outputs][pixels] */
    int32_t *counts; /* [samples][steps] */
    void *u, *v;     /* [samples][pixels][steps][blocks * LANES], int32 or where `wide` int64 */
    int64_t *peak;   /* of this thread */
    const tally_t *tally; /* what is counted, or NULL */
} stage_t;

typedef struct {
    char *memory; /* all that the pointers below point into */
    size_t bytes;
    uint32_t *words[2], *silence, *begin;
    uint8_t *items, *windows, *expanded;
    uint16_t *events;
    int32_t *counts;          /* counts: [2][members][steps], of two layers in turn */
    int32_t *kept, *room;     /* loops: sums, and see `looped` */
    char *tallied;            /* room of `tally` */
    char *sums;               /* [members] of sums_bytes */
    size_t sums_bytes;
    uint32_t most;            /* events of one step and plane */
    int members;
    atomic_int arrived, phase, next[2]; /* next: unit of a layer that nobody has taken */
} team_t;

/* Sizes of the structures, which the caller's view of them must have. */
int knarr_structures(void) { return (int)(sizeof(layer_t) << 16 | sizeof(stage_t)); }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Whole cache lines: what one thread writes shares none with what another does. */
static size_t lines(size_t bytes) { return (bytes + 127) / 64 * 64; }

void knarr_team_free(team_t *team)
{
    if (!team) return;
    free(team->memory), free(team);
}

size_t knarr_team_bytes(const team_t *team) { return team->bytes; }

/* A team for a chain: `team` itself, whose memory is kept where it is enough, or a new one where it is NULL. Touching new pages
   costs more than small networks do. `words` of input come first. NULL, and nothing left, where there is no memory. */
team_t *knarr_team(team_t *team, const stage_t *stages, int n, size_t words, int steps, int members)
{
    size_t items = 0, begins = 0, tables = 0, events = 0, bytes = 0, kept = 0, room = 0, tallied = 0, sums = sizeof(int32_t) * LANES * (size_t)steps;
    for (int i = 0; i < n; i++) {
        const layer_t *l = &stages[i].layer;
        const size_t in = (size_t)l->in_h * l->in_w, arriving = in * l->groups * l->planes * steps;
        if (stages[i].tally) {
            const tally_t *c = stages[i].tally;
            const size_t pixels = (size_t)c->in_h * c->in_w, delayed = stages[i].shift.pairs ? (size_t)stages[i].shift.words : in * l->groups;
            if (c->touched) tallied = most(tallied, c->delay ? delayed * 32 * (((size_t)steps + 63) / 64) * 8 : (pixels + c->in_w + c->out_w) * (((size_t)steps + 31) / 32) * 4);
        }
        words = most(words, most(arriving, (size_t)l->out_h * l->out_w * l->blocks * steps));
        if (l->dot) bytes = most(bytes, in * steps * l->quads * 4);
        sums = most(sums, sizeof(int32_t) * LANES * ((size_t)steps + 2 * (size_t)l->history));
        if (l->wide) sums = most(sums, sizeof(int64_t) * 2 * LANES * l->blocks);
        if (l->back && !l->wide) {
            kept = most(kept, (size_t)l->blocks * steps * LANES);
            room = most(room, (size_t)l->blocks * 3 * LANES + 32);
        }
        if (l->wide) continue;
        if (l->dense) {
            events = most(events, in * l->channels * l->planes * steps + 32);
            begins = most(begins, (size_t)(dense_words(l) / CHUNK + 1) * steps * l->planes + 1);
            sums = most(sums, 2 * sizeof(int32_t) * LANES * (size_t)steps);
        } else if (l->mode == LISTS) {
            items = most(items, in * l->channels * l->planes * steps + 64 * ((size_t)members + 1));
            begins = most(begins, (size_t)l->in_h * steps * (l->in_w + 1));
            if (fits_columns(l)) sums = most(sums, sizeof(int16_t) * LANES * (size_t)steps * l->out_w);
        } else if (l->mode == TABLE) {
            tables = most(tables, (size_t)l->in_h * l->out_w * steps);
        }
    }
    const size_t counts = 2 * (size_t)members * steps;
    const size_t needed = 2 * lines(words * 4) + lines((size_t)steps * 4) + lines(begins * 4) + lines(items) + lines(tables) + lines(bytes)
        + lines(events * 2) + lines(counts * 4) + lines(kept * 4) + lines(room * 4) + lines(tallied) + (size_t)members * lines(sums);
    if (!team && !(team = calloc(1, sizeof *team))) return NULL;
    if (team->bytes < needed) {
        free(team->memory);
        team->bytes = needed;
        if (!(team->memory = aligned_alloc(64, needed))) {
            knarr_team_free(team);
            return NULL;
        }
    }
    char *at = team->memory;
#define ROOM(pointer, size) pointer = (void *)at, at += lines(size)
    ROOM(team->words[0], words * 4);
    ROOM(team->words[1], words * 4);
    ROOM(team->silence, (size_t)steps * 4);
    ROOM(team->begin, begins * 4);
    ROOM(team->items, items);
    ROOM(team->windows, tables);
    ROOM(team->expanded, bytes);
    ROOM(team->events, events * 2);
    ROOM(team->counts, counts * 4);
    ROOM(team->kept, kept * 4);
    ROOM(team->room, room * 4);
    ROOM(team->tallied, tallied);
#undef ROOM
    team->sums = team->memory + needed - (size_t)members * lines(sums);
    team->sums_bytes = lines(sums);
    memset(team->silence, 0, (size_t)steps * 4);
    team->members = members;
    team->most = 0;
    atomic_store(&team->arrived, 0);
    return team;
}

/* Wait for all; 0 when `stop` is set instead. */
static int meet(team_t *team, const volatile int32_t *stop)
{
    if (team->members == 1) return !*stop;
    const int phase = atomic_load(&team->phase);
    if (atomic_fetch_add(&team->arrived, 1) == team->members - 1) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->phase, phase + 1);
        return !*stop;
    }
    for (int spins = 0; atomic_load(&team->phase) == phase; spins++) {
        if (*stop) return 0;
        if (spins > 2000) sched_yield(); /* the other one may need this core */
    }
    return !*stop;
}

/* A member's share of n things. */
static int share(int n, int member, int members) { return (int)((int64_t)n * member / members); }
