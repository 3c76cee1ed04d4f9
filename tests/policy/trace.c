#include "trace.h"

#include <err.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SIZE_LEAST = 1 << 10,
    SIZE_MOST = 4 << 20,
    COST_LEAST = 50,
    COST_MOST = 60000,
    NEARBY = 16 /* places by which parallel compilers change the order */
};

const struct trace_kind trace_kinds[] = {
    {"c", "C project: 3,000 objects of 15 KB, a branch beside main", 3000, 300, 2, 15e3, 1.3, 300,
     0.5, 0.6, 0.02, 0.9, 0.1, 0.2, 0.2, 0.2},
    {"c++", "C++ project: 1,200 objects of 150 KB that take 6 s, headers change often", 1200, 150,
     2, 150e3, 1.4, 6000, 0.5, 0.6, 0.03, 0.8, 0.2, 0.25, 0.2, 0.2},
    {"monorepo", "8,000 objects of 30 KB, six branches that are switched between", 8000, 150, 6,
     30e3, 1.5, 1500, 0.4, 0.8, 0.02, 0.9, 0.1, 0.15, 0.4, 0.1},
    {"site", "3,000 pages of 8 KB, nearly alike; now and then a template changes a third of them",
     3000, 300, 1, 8e3, 0.5, 70, 0.3, 0.4, 0.015, 0.6, 0.1, 0.33, 0, 0},
    {"alike", "3,000 objects that are all alike", 3000, 200, 2, 32e3, 0, 1000, 0, 0, 0.02, 0.9, 0.1,
     0.2, 0.2, 0.2},
    {.name = NULL},
};

struct maker {
    struct trace *trace;
    uint64_t random;
    uint32_t object_room;
    size_t access_room;
    uint32_t *versions; /* objects: of each unit, branch after branch */
    uint32_t *by_rank;  /* units, those that change most often first */
    double *weights;    /* by rank, summed up */
    double *factors;    /* by unit: what makes it dear or cheap for its size */
    uint32_t *order;
};

static uint64_t next_random(struct maker *maker)
{
    uint64_t mixed = maker->random += 0x9E3779B97F4A7C15;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
    return mixed ^ mixed >> 31;
}

/* 0 to 1, neither of them. */
static double uniform(struct maker *maker)
{
    return ((double)(next_random(maker) >> 11) + 0.5) / 0x1p53;
}

static uint32_t below(struct maker *maker, uint32_t limit)
{
    return (uint32_t)(uniform(maker) * limit);
}

static bool happens(struct maker *maker, double chance)
{
    return uniform(maker) < chance;
}

/* A factor whose logarithm is normal with this sigma. */
static double lognormal(struct maker *maker, double sigma)
{
    double radius = sqrt(-2 * log(uniform(maker)));
    return exp(sigma * radius * cos(2 * M_PI * uniform(maker)));
}

static double clamp(double number, double least, double most)
{
    return number < least ? least : number > most ? most : number;
}

static void *array(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory == NULL)
        err(1, "no memory for a trace");
    return memory;
}

static void *grown(void *memory, size_t count, size_t size)
{
    memory = reallocarray(memory, count, size);
    if (memory == NULL)
        err(1, "no memory for a trace");
    return memory;
}

/* A new object; its number is given when it is first asked for. */
static struct trace_object make_object(struct maker *maker, uint32_t unit, double size)
{
    const struct trace_kind *kind = maker->trace->kind;
    double cost = kind->cost * pow(size / kind->size, kind->cost_power) * maker->factors[unit];
    return (struct trace_object){.size = (uint32_t)clamp(size, SIZE_LEAST, SIZE_MOST),
                                 .cost = (uint32_t)clamp(cost, COST_LEAST, COST_MOST)};
}

static uint32_t add_object(struct maker *maker, struct trace_object object)
{
    struct trace *trace = maker->trace;
    if (trace->object_count == maker->object_room) {
        maker->object_room = maker->object_room * 2 + 1024;
        trace->objects = grown(trace->objects, maker->object_room, sizeof(*trace->objects));
    }
    trace->objects[trace->object_count] = object;
    return trace->object_count++;
}

static uint32_t *version(struct maker *maker, uint32_t branch, uint32_t unit)
{
    return &maker->versions[(size_t)branch * maker->trace->kind->units + unit];
}

static void change(struct maker *maker, uint32_t branch, uint32_t unit)
{
    uint32_t *object = version(maker, branch, unit);
    double size = maker->trace->objects[*object].size;
    if (maker->trace->kind->size_spread > 0)
        size *= lognormal(maker, 0.05);
    *object = add_object(maker, make_object(maker, unit, size));
}

/* A unit by the power law. */
static uint32_t often_changed(struct maker *maker)
{
    uint32_t low = 0, high = maker->trace->kind->units - 1;
    double at = uniform(maker) * maker->weights[high];
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (maker->weights[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return maker->by_rank[low];
}

static void edit(struct maker *maker, uint32_t branch)
{
    const struct trace_kind *kind = maker->trace->kind;
    double mean = kind->changed * kind->units;
    uint32_t count = (uint32_t)(-log(uniform(maker)) * mean);
    for (uint32_t i = 0; i < count && i < kind->units; i++)
        change(maker, branch, often_changed(maker));
    if (!happens(maker, kind->burst))
        return;
    uint32_t length = (uint32_t)(kind->burst_share * kind->units);
    uint32_t first = below(maker, kind->units - length + 1);
    for (uint32_t i = 0; i < length; i++)
        change(maker, branch, first + i);
}

static void build(struct maker *maker, uint32_t branch)
{
    struct trace *trace = maker->trace;
    uint32_t units = trace->kind->units;
    if (trace->access_count + units > maker->access_room) {
        maker->access_room = maker->access_room * 2 + units;
        trace->accesses = grown(trace->accesses, maker->access_room, sizeof(*trace->accesses));
    }
    for (uint32_t i = 0; i < units; i++)
        maker->order[i] = i;
    for (uint32_t i = 0; i < units; i++) {
        uint32_t with = i + below(maker, NEARBY);
        if (with >= units)
            continue;
        uint32_t unit = maker->order[i];
        maker->order[i] = maker->order[with];
        maker->order[with] = unit;
    }
    for (uint32_t i = 0; i < units; i++)
        trace->accesses[trace->access_count++] = *version(maker, branch, maker->order[i]);
}

static void begin(struct maker *maker)
{
    const struct trace_kind *kind = maker->trace->kind;
    double sum = 0;
    for (uint32_t i = 0; i < kind->units; i++) {
        uint32_t other = below(maker, i + 1);
        maker->by_rank[i] = maker->by_rank[other];
        maker->by_rank[other] = i;
        sum += pow(i + 1, -kind->skew);
        maker->weights[i] = sum;
        maker->factors[i] = lognormal(maker, kind->cost_spread);
        double size = kind->size * lognormal(maker, kind->size_spread);
        *version(maker, 0, i) = add_object(maker, make_object(maker, i, size));
    }
    for (uint32_t branch = 1; branch < kind->branches; branch++)
        memcpy(version(maker, branch, 0), version(maker, 0, 0), kind->units * sizeof(uint32_t));
}

static void run(struct maker *maker)
{
    const struct trace_kind *kind = maker->trace->kind;
    uint32_t branch = 0;
    for (uint32_t i = 0; i < kind->builds; i++) {
        build(maker, branch);
        if (kind->branches > 1 && happens(maker, kind->change_switch)) {
            branch = (branch + 1 + below(maker, kind->branches - 1)) % kind->branches;
            if (branch != 0 && happens(maker, kind->rebase))
                memcpy(version(maker, branch, 0), version(maker, 0, 0),
                       kind->units * sizeof(uint32_t));
        }
        edit(maker, branch);
    }
}

/* Objects that nobody asked for (a unit changed twice between two builds) go, the rest is numbered
 * in the order of the first use. */
static void number(struct trace *trace)
{
    uint32_t *numbers = array(trace->object_count, sizeof(*numbers));
    struct trace_object *objects = array(trace->object_count, sizeof(*objects));
    uint32_t count = 0;
    for (size_t i = 0; i < trace->access_count; i++) {
        uint32_t object = trace->accesses[i];
        if (numbers[object] == 0) {
            objects[count] = trace->objects[object];
            trace->footprint += objects[count].size;
            if (i < trace->kind->units)
                trace->build += objects[count].size;
            numbers[object] = ++count;
        }
        trace->accesses[i] = numbers[object] - 1;
    }
    free(numbers);
    free(trace->objects);
    trace->objects = objects;
    trace->object_count = count;
}

struct trace *trace_make(const struct trace_kind *kind, uint64_t seed, uint32_t shrink)
{
    struct trace *trace = array(1, sizeof(*trace) + sizeof(*kind));
    struct trace_kind *smaller = (struct trace_kind *)(trace + 1);
    *smaller = *kind;
    smaller->units /= shrink;
    trace->kind = smaller;
    struct maker maker = {.trace = trace, .random = seed * 0xD1342543DE82EF95 + 1};
    maker.versions = array((size_t)smaller->units * smaller->branches, sizeof(uint32_t));
    maker.by_rank = array(smaller->units, sizeof(uint32_t));
    maker.weights = array(smaller->units, sizeof(double));
    maker.factors = array(smaller->units, sizeof(double));
    maker.order = array(smaller->units, sizeof(uint32_t));
    begin(&maker);
    run(&maker);
    number(trace);
    free(maker.versions);
    free(maker.by_rank);
    free(maker.weights);
    free(maker.factors);
    free(maker.order);
    return trace;
}

void trace_free(struct trace *trace)
{
    if (trace == NULL)
        return;
    free(trace->objects);
    free(trace->accesses);
    free(trace);
}
