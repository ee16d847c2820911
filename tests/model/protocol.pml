/*
 * The protocol by which pods are charged to quotas: admission, count, expiry, release.
 *
 * Each comment "code: module:function" names what the lines below it stand for, below
 * operator/hugetlb_quota; test_names.py checks that it exists. Six scenes (-DSCENE=1 to 6), each
 * small enough to be searched to its end:
 *   1  RACE     two replicas, a chain of two quotas, group commit
 *   2  FENCE    quotas that are made while pods come
 *   3  COUNT    pods that are relabelled, expiry, a leader that is paused while another leads
 *   4  RELEASE  a node that boots, its agent, pods that end in any way
 *   5  RESTART  the same with a controller that starts anew, and no boot
 *   6  LIVES    a controller that is restarted again and again: the only scene without an end.
 *               The properties "emptied" and "at_rest" say what happens in the long run.
 * Every pod asks for one page. A guard is removed by -D with its name: see GUARDS in spin.py.
 *
 * What is seen through a watch is a copy of a past state: it is brought up to date in a step of its
 * own, at any time. A resourceVersion that a write depends on is one bit: whether the copy
 * is still what is stored. Time does not pass by itself: a reservation's life may be over as soon as
 * its request is.
 */

#define RACE (SCENE == 1)
#define FENCE (SCENE == 2)
#define ADMISSION (RACE || FENCE)
#define COUNT (SCENE == 3)
#define RELEASE (SCENE == 4 || SCENE == 5)          /* with a boot */
#define RESTART (SCENE == 5)                        /* with another controller instead */
#define LIVES (SCENE == 6)

#if RACE
#define REPLICAS 2
#define REQUESTS 3
#define PODS 3
#define QUOTAS 2
#define PREMADE 2                                   /* quotas that are there from the beginning */
#define HARD(q) (q == 0 -> 2 : 1)
#define POD(r) (r)
#define MINE(k) (k == 0 -> 3 : 4)                   /* the requests to replica k */
#elif FENCE
#define REPLICAS 1
#define REQUESTS 2
#define PODS 2
#define QUOTAS 2
#define PREMADE 0
#define HARD(q) (q == 0 -> 2 : 1)
#define POD(r) (r)
#define MINE(k) 3
#elif COUNT
#define REPLICAS 1
#define REQUESTS 3
#define PODS 2
#define QUOTAS 1
#define PREMADE 1
#define HARD(q) 2
#define POD(r) (r & 1)
#define MINE(k) 7
#else
#define REPLICAS 1
#define REQUESTS 2
#define PODS 2
#define QUOTAS 1
#define PREMADE 1
#define HARD(q) 1
#define POD(r) (r)
#define MINE(k) 3
#endif

#if COUNT
#define RELABELS(r) (r != 1)
#define SAME(r) (r == 1 -> 2 : 5)                   /* what is reserved for the same pod */
#define PODS_OF(set) (((set & 5) != 0) + HAS(set, 1))
#else
/* Who decides again reserves anew: bits 3 to 5 are of the second attempt. */
#define RELABELS(r) false
#define SAME(r) (BIT(r) | BIT(r + 3))
#define PODS_OF(set) (HAS(set | set >> 3, 0) + HAS(set | set >> 3, 1) + HAS(set | set >> 3, 2))
#endif

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)

/* ---- the API server's objects ---- */

typedef Pod {
    bit here;                                       /* in the API */
    bit under;                                      /* its labels put it under the quotas */
    bit bound;                                      /* to the node */
    bit ended;                                      /* it was in the API, and is no more */
    unsigned version : 3                            /* counts its changes: what orders them */
};
Pod pod[PODS];

/* code: accounting.counter:Counter */
typedef Quota {
    bit exists;
    bit counted;                                    /* observedGeneration is its generation */
    unsigned pods : 2;
    unsigned retained : 2;
    unsigned reserved : 6;                          /* the requests that hold a reservation */
    unsigned identities : 2;                        /* counted pods with lines that stay */
    unsigned term : 2                               /* countedUnder */
};
Quota quota[QUOTAS];

#define USED(q) (quota[q].pods + quota[q].retained + PODS_OF(quota[q].reserved))

/* A request to the API server. UNDECIDED: it waits for admission. OVER: it was answered, refused or
   abandoned, or its pod is there. LATE: its time is over, and etcd, which was paused, has yet to
   decide it. */
#define NOT_SENT 0
#define UNDECIDED 1
#define ALLOWED 2
#define OVER 3
#define LATE 4
byte phase[REQUESTS];
byte since[REQUESTS];                               /* the pod's version at the request */
byte owed[REQUESTS];                                /* the quotas at the time of the request */
byte owes[PODS];                                    /* quotas that the pod must be charged to */

#if RELEASE
/* ---- the node ---- */

bit boot;                                           /* bootID, as the Node shows too */
bit started[PODS];                                  /* kubelet has made its cgroup once */
bit cgroup[PODS];                                   /* there is one, with processes */
bit filled[PODS];                                   /* a file holds its page, cgroup or not */

/* What a report says; code: accounting.release:NodeEvidence */
typedef Report {
    bit boot;
    unsigned reached : 2;                           /* pods with an end up to podsResourceVersion */
    unsigned live : 2;                              /* pods with a cgroup, or one that may come */
    unsigned charged : 2                            /* pods that files are charged to */
};
Report report;                                      /* the status of HugeTLBNode */
#define RUNS(p) (cgroup[p] || filled[p])
#else
#define RUNS(p) false
#endif

/* ---- what the properties say ---- */

/* Whether the pod may yet be written: a relabel lands on the pod that admission saw, or never. */
#define LANDS(r) \
    ((phase[r] == ALLOWED || phase[r] == LATE) && \
     (!RELABELS(r) || (pod[POD(r)].here && pod[POD(r)].version == since[r])))
#define COMES(r, p, q) (POD(r) == p && HAS(owed[r], q) && LANDS(r))
#if REQUESTS == 3
#define MAY_COME(p, q) (COMES(0, p, q) || COMES(1, p, q) || COMES(2, p, q))
#else
#define MAY_COME(p, q) (COMES(0, p, q) || COMES(1, p, q))
#endif
#define TAKES(p, q) \
    (MAY_COME(p, q) || (HAS(owes[p], q) && ((pod[p].here && pod[p].under) || RUNS(p))))
/* What exists, may yet exist, or is left in files. */
#if PODS == 3
#define TAKEN(q) (TAKES(0, q) + TAKES(1, q) + TAKES(2, q))
#else
#define TAKEN(q) (TAKES(0, q) + TAKES(1, q))
#endif

inline check() {
    assert(TAKEN(0) <= HARD(0));                    /* no admission over the limit */
    assert(!quota[0].counted || USED(0) >= TAKEN(0));   /* no charge lost */
#if QUOTAS == 2
    assert(TAKEN(1) <= HARD(1));
    assert(!quota[1].counted || USED(1) >= TAKEN(1));
#endif
}

/* ---- copies that watches keep ---- */

/* code: admission.cache:QuotaCache */
typedef Cached {
    bit exists;
    bit counted;
    bit current;                                    /* its resourceVersion is the stored one */
    unsigned charged : 3;                           /* pods and retained */
    unsigned reserved : 6
};
Cached cached[REPLICAS * QUOTAS];
#define CACHED(k, q) cached[(k) * QUOTAS + (q)]

#if !ADMISSION
Pod seen[2 * PODS];
#define SEEN(c, p) seen[(c) * PODS + (p)]
bit dirty[2];                                 /* something changed: recount */
byte leads = 1;                                     /* the last that took the Lease */
bit stopped[2];
#endif
#if LIVES
/* A life is watched by two programs: 0 unseen, 1 seen, 2 over. code: accounting.lives:Lives */
byte watched[REQUESTS];                             /* by the controller, since it started */
byte witnessed[REQUESTS];                           /* by a replica of admission */
byte marked;                                        /* the requests with a line that is marked over */
bit counting;
bit flip;                                           /* another at each write of a quota */
ltl emptied { [] <> (quota[0].reserved == 0) }      /* no reservation for ever */
ltl at_rest { <> ([] flip || [] !flip) }            /* no livelock: the writes end */
#endif
byte back[REPLICAS];                                /* reservations that are being taken back */
byte again;                                         /* requests that were decided on twice */

inline copy_quota(k, q) {
    CACHED(k, q).exists = quota[q].exists;
    CACHED(k, q).counted = quota[q].counted;
    CACHED(k, q).charged = quota[q].pods + quota[q].retained;
    CACHED(k, q).reserved = quota[q].reserved;
    CACHED(k, q).current = 1
}

/* One stream shows all quotas in order, so a copy of all is of one moment.
   code: admission.cache:QuotaCache.wait_for */
inline watch_quotas(k) {
    copy_quota(k, 0);
#if QUOTAS == 2
    copy_quota(k, 1)
#endif
}

/* The scenes in which each decision reads the cache again. */
inline forget_quota(k) {
    CACHED(k, 0).charged = 0;
    CACHED(k, 0).reserved = 0;
    CACHED(k, 0).current = 0
}

/* A write by anybody: every other copy is of the past, and controllers look again. */
inline wrote(q) {
#if LIVES
    flip = !flip;
#endif
    CACHED(0, q).current = 0;
#if REPLICAS == 2
    CACHED(1, q).current = 0;
#endif
#if !ADMISSION
    dirty[0] = 1;
    dirty[1] = COUNT || RESTART
#endif
}

inline over(r) {
    phase[r] = OVER;
#if !ADMISSION
    dirty[0] = 1;
    dirty[1] = COUNT || RESTART
#endif
}

/* ---- the API server: one request, with the webhook and what comes after it ---- */

/* code: admission.requested_pod:RequestedPod */
proctype ApiServer(byte r) {
end:
    atomic {
        !RELABELS(r) || (pod[POD(r)].here && !pod[POD(r)].under) ->
        phase[r] = UNDECIDED;
        since[r] = pod[POD(r)].version;
        owed[r] = quota[0].exists;
#if QUOTAS == 2
        owed[r] = owed[r] | (quota[1].exists << 1);
#endif
        printf("request %d for pod %d comes\n", r, POD(r))
    }
    do
    :: atomic {
        if
        :: phase[r] == UNDECIDED ->
            over(r);
            printf("request %d is abandoned\n", r)
        :: phase[r] == ALLOWED || phase[r] == LATE ->
            over(r);
            printf("request %d is refused by another\n", r)
#if COUNT
        :: phase[r] == ALLOWED ->
            phase[r] = LATE;
            dirty[0] = 1;
            dirty[1] = 1;
            printf("the time of request %d is over while etcd is paused\n", r)
#endif
        :: LANDS(r) ->
            pod[POD(r)].here = 1;
            pod[POD(r)].under = 1;
            pod[POD(r)].version++;
            owes[POD(r)] = owes[POD(r)] | owed[r];
            over(r);
            printf("pod %d is written by request %d\n", POD(r), r)
        :: phase[r] == OVER
        fi;
        check();
        if
        :: phase[r] == OVER -> break
        :: else
        fi
    }
    od
}

/* What users do to pods. */
proctype Users(byte p) {
#if COUNT
    bit shed = 0;
#endif
end:
    do
#if COUNT
    :: atomic {
        pod[p].here && pod[p].under && !shed && p == 0 ->
        pod[p].under = 0;
        pod[p].version++;
        shed = 1;
        printf("pod %d loses its label\n", p)
    }
#endif
    :: atomic {
        pod[p].here && (RELEASE || LIVES || p == 1) ->
        pod[p].here = 0;
        pod[p].ended = 1;
        printf("pod %d is deleted\n", p);
        break
    }
    od
}

/* ---- admission ---- */

#define WAITS_FOR(k, r) (HAS(MINE(k), r) && phase[r] == UNDECIDED)
#if FENCE && !defined(SAME_ID_AGAIN)
/* code: admission.pods:PodAdmission._reservation */
#define ID(r) (HAS(again, r) -> BIT(r + 3) : BIT(r))
#define IDS(r) (BIT(r) | BIT(r + 3))
#else
#define ID(r) BIT(r)
#define IDS(r) BIT(r)
#endif
#if REQUESTS == 3
#define WAITING(k) (WAITS_FOR(k, 0) | (WAITS_FOR(k, 1) << 1) | (WAITS_FOR(k, 2) << 2))
#else
#define WAITING(k) (WAITS_FOR(k, 0) | (WAITS_FOR(k, 1) << 1))
#endif
#if QUOTAS == 2
#define CHAIN(k) (CACHED(k, 0).exists | (CACHED(k, 1).exists << 1))
#define CURRENT(k) (CACHED(k, 0).current && CACHED(k, 1).current)
#define COUNTED(k) \
    ((!CACHED(k, 0).exists || CACHED(k, 0).counted) && (!CACHED(k, 1).exists || CACHED(k, 1).counted))
#else
#define CHAIN(k) 1
#define CURRENT(k) CACHED(k, 0).current
#define COUNTED(k) true
#endif
#ifdef UNCOUNTED
#define READY(k) true
#else
/* code: admission.pods:PodAdmission._counted */
#define READY(k) COUNTED(k)
#endif

#ifdef DECIDE_EACH_ALONE
#define BEFORE(k, q) CACHED(k, q).reserved
#else
#define BEFORE(k, q) tab
#endif

/* The requests of the batch that fit, in order, by the cached quota: into tab, or into failed.
   code: admission.batch:decide, admission.batch:_why_not, accounting.counter:Tab */
inline decide(k, q) {
    tab = CACHED(k, q).reserved;
    r = 0;
    do
    :: r < REQUESTS ->
        if
        :: HAS(batch & ~failed, r) && !(tab & ID(r)) ->
            if
            :: CACHED(k, q).charged + PODS_OF((BEFORE(k, q) & ~SAME(r))) + 1 <= HARD(q) ->
                tab = tab | ID(r)
            :: else -> failed = failed | BIT(r)
            fi
        :: else
        fi;
        r++
    :: else -> break
    od;
    r = 0
}

#if ADMISSION
/* Of a request that is over, expiry does the same; the other scenes tell them apart. */
#define TAKES_BACK(k, r) skip
#else
#define TAKES_BACK(k, r) back[k] = back[k] | ID(r)
#endif

/* code: admission.pods:PodAdmission._admit, admission.commit:Committer._commit */
proctype Replica(byte k) {
    byte batch, failed, chain, todo, tab, q, r;
end:
    do
    :: atomic { WAITING(k) && !READY(k) && !CURRENT(k) -> watch_quotas(k) }
    :: atomic {
        WAITING(k) && READY(k) ->
        /* The cache is of the last decision, or of now. */
        if
        :: !CURRENT(k) -> watch_quotas(k)
        :: CURRENT(k) || ADMISSION
        fi;
        /* code: admission.lane:Lane.take_batch */
        if
#if ADMISSION
        :: batch = WAITING(k)
#endif
        :: HAS(WAITING(k), 0) -> batch = 1
        :: HAS(WAITING(k), 1) -> batch = 2
#if REQUESTS == 3
        :: HAS(WAITING(k), 2) -> batch = 4
#endif
        fi;
#ifndef NO_PROOF
        /* code: admission.cache:QuotaCache.read_namespace */
        if
        :: CHAIN(k) == 0 -> watch_quotas(k)
        :: else
        fi;
#endif
        if
        :: READY(k) && WAITING(k) ->
            chain = CHAIN(k);
            todo = chain
        :: else ->
            batch = 0;
            goto end
        fi;
        printf("replica %d takes requests %d for quotas %d\n", k, batch, chain)
    };
        do
        :: atomic {
            todo ->
            if
            :: HAS(todo, 0) -> q = 0
#if QUOTAS == 2
            :: HAS(todo, 1) -> q = 1
#endif
            fi;
            decide(k, q)
        };
            /* code: admission.commit:Committer._swap */
            do
            :: atomic {
                if
                :: tab == CACHED(k, q).reserved -> todo = todo & ~BIT(q)
#ifdef NO_COMPARE
                :: tab != CACHED(k, q).reserved ->
#else
                :: tab != CACHED(k, q).reserved && CACHED(k, q).current ->
#endif
                    quota[q].reserved = tab;
                    wrote(q);
                    copy_quota(k, q);
                    todo = todo & ~BIT(q);
                    printf("replica %d writes reservations %d on quota %d\n", k, tab, q);
                    check()
                :: else ->
                    copy_quota(k, q);
                    decide(k, q)
                fi;
                if
                :: !HAS(todo, q) -> q = 0; tab = 0; break
                :: else
                fi
            }
            od
        :: atomic {
            todo == 0 ->
#if !ADMISSION
            forget_quota(k);
#else
            /* The watch has reached the last of the writes. code: admission.pods:PodAdmission._confirm */
            watch_quotas(k);
#endif
            if
#if FENCE && !defined(NO_FENCE)
            :: CHAIN(k) != chain ->
                do
                :: r < REQUESTS ->
                    if
                    :: HAS(batch, r) -> back[k] = back[k] | ID(r)
                    :: else
                    fi;
                    r++
                :: else -> r = 0; break
                od;
                again = again | batch;
                printf("replica %d decides requests %d again\n", k, batch)
            :: CHAIN(k) == chain ->
#else
            :: true ->
#endif
                do
                :: r < REQUESTS ->
                    if
                    :: HAS(batch, r) && HAS(failed, r) ->
                        TAKES_BACK(k, r);
                        if
                        :: phase[r] == UNDECIDED -> over(r)
                        :: else
                        fi
                    :: HAS(batch & ~failed, r) && phase[r] == UNDECIDED ->
                        phase[r] = ALLOWED;
                        printf("replica %d allows request %d\n", k, r)
                    /* It was abandoned. */
                    :: HAS(batch & ~failed, r) && phase[r] == OVER -> TAKES_BACK(k, r)
                    :: else
                    fi;
                    r++
                :: else -> r = 0; break
                od
            fi;
            batch = 0;
            failed = 0;
            chain = 0;
            check();
            break
        }
        od
    od
}

/* code: admission.uncharge:Uncharger._uncharge, accounting.reservation:ReservationId */
proctype TakeBack(byte k) {
end:
    do
    :: atomic {
        back[k] ->
#ifdef TAKE_BACK_ANY
        if
        :: back[k] & SAME(0) -> back[k] = back[k] | SAME(0)
        :: else
        fi;
#endif
        if
        :: quota[0].reserved & back[k] ->
            quota[0].reserved = quota[0].reserved & ~back[k];
            wrote(0)
        :: else
        fi;
#if QUOTAS == 2
        if
        :: quota[1].reserved & back[k] ->
            quota[1].reserved = quota[1].reserved & ~back[k];
            wrote(1)
        :: else
        fi;
#endif
        printf("replica %d takes requests %d back\n", k, back[k]);
        back[k] = 0;
        check()
    }
    :: atomic {
        back[k] ->
        printf("replica %d leaves requests %d to expire\n", k, back[k]);
        back[k] = 0
    }
    od
}

#if ADMISSION
#define IF_OVER(r) (phase[r] == OVER -> IDS(r) : 0)
#if REQUESTS == 3
#define OVERS (IF_OVER(0) | IF_OVER(1) | IF_OVER(2))
#define PODS_HERE (pod[0].here + pod[1].here + pod[2].here)
#else
#define OVERS (IF_OVER(0) | IF_OVER(1))
#define PODS_HERE (pod[0].here + pod[1].here)
#endif
#endif

#if FENCE
/* Makes quotas: a second one in the namespace, or a parent. One with more pods than it
   allows may be made; no admission is to blame for that, so it is not made here. */
proctype Administrator() {
    byte q = PREMADE;
    byte p;
    do
    :: atomic {
        q < QUOTAS && PODS_HERE <= HARD(q) ->
        quota[q].exists = 1;
        do
        :: p < PODS ->
            if
            :: pod[p].here -> owes[p] = owes[p] | BIT(q)
            :: else
            fi;
            p++
        :: else -> p = 0; break
        od;
        wrote(q);
        printf("quota %d is made\n", q);
        q++
    }
    :: break
    od
}
#endif

/* ---- the controller ---- */

#if ADMISSION
/* Here the controller is in one step: it sees the pods, counts them, and drops what is over. */
#define STALE_COUNT(q) \
    (quota[q].exists && \
     (!quota[q].counted || quota[q].pods != PODS_HERE || (quota[q].reserved & OVERS)))

/* code: accounting.recount:recount */
proctype Count(byte q) {
end:
    do
    :: atomic {
        STALE_COUNT(q) ->
        quota[q].pods = PODS_HERE;
        quota[q].reserved = quota[q].reserved & ~OVERS;
        quota[q].counted = 1;
        wrote(q);
        printf("the controller counts quota %d: pods %d, reservations %d\n",
            q, quota[q].pods, quota[q].reserved);
        check()
    }
    od
}
#else

#define SAME_POD(c, p) \
    (SEEN(c, p).here == pod[p].here && SEEN(c, p).under == pod[p].under && \
     SEEN(c, p).version == pod[p].version && SEEN(c, p).ended == pod[p].ended && \
     SEEN(c, p).bound == pod[p].bound)

inline see_pod(c, p) {
    SEEN(c, p).here = pod[p].here;
    SEEN(c, p).under = pod[p].under;
    SEEN(c, p).version = pod[p].version;
    SEEN(c, p).bound = pod[p].bound;
    SEEN(c, p).ended = pod[p].ended
}

#if RELEASE
Report copies[2];                               /* the copies of the report */
bit node_boot[2];                             /* the copies of Node's bootID */
#define SAME_REPORT(c) \
    (copies[c].boot == report.boot && copies[c].reached == report.reached && \
     copies[c].live == report.live && copies[c].charged == report.charged)
#define NAMES(c, p) HAS(copies[c].live | copies[c].charged, p)
#ifdef ANY_OTHER_BOOT
#define BOOTED(c) (node_boot[c] != copies[c].boot)
#else
/* The Node was seen with the report's boot, and then with another. A report may also be of a boot
   that the Node object does not show yet. code: controller.counting.node_history:NodeHistory.former_boots */
#define BOOTED(c) (node_boot[c] && !copies[c].boot)
#endif

#ifdef RELEASE_WITHOUT_VERSION
#define REACHED(c, p) true
#else
/* code: accounting.release:is_released */
#define REACHED(c, p) HAS(copies[c].reached, p)
#endif
#ifdef BOOT_ENDS_ALL
#define FORGOTTEN(c, p) BOOTED(c)
#else
/* code: accounting.release:is_released */
#define FORGOTTEN(c, p) (BOOTED(c) && REACHED(c, p))
#endif
/* The controller knows that it has ended, and that nothing of it runs. */
#define RELEASED(c, p) \
    (SEEN(c, p).ended && \
     (!SEEN(c, p).bound || FORGOTTEN(c, p) || (REACHED(c, p) && !HAS(copies[c].live, p))))
#ifdef SILENT_AGENT
#define REPORTED(c, p) true
#else
#define REPORTED(c, p) (!RUNS(p) || NAMES(c, p))
#endif

inline see_report(c) {
    copies[c].boot = report.boot;
    copies[c].reached = report.reached;
    copies[c].live = report.live;
    copies[c].charged = report.charged
}
#else
#define RELEASED(c, p) (SEEN(c, p).ended)           /* never bound */
#define REPORTED(c, p) true
#endif

#ifdef SNAPSHOT_OF_A_LOST_LEASE
#define LEADS(c) (leads > c)
#else
/* At the moment of the snapshot no other controller can have led: the snapshot has nothing newer.
   code: controller.term:Term.is_held */
#define LEADS(c) (leads == c + 1)
#endif

#if LIVES
inline restart_sees(p) {
    if
    :: pod[p].here -> see_pod(0, p)
    :: else ->
        SEEN(0, p).here = 0;
        SEEN(0, p).under = 0;
        SEEN(0, p).version = 0;
        SEEN(0, p).bound = 0;
        SEEN(0, p).ended = 0
    fi
}
#endif

/* The informers of one controller. code: kube.informer:Informer */
proctype Informers(byte c) {
    byte p;
end:
    do
    /* A watch shows changes in order: first the node of a pod, and then the end of the pod. */
    :: atomic {
        LEADS(c) && !stopped[c] &&
        (!SAME_POD(c, 0) || !SAME_POD(c, 1)
        ) ->
        see_pod(c, 0);
        see_pod(c, 1);
        dirty[c] = 1;
        printf("controller %d sees the pods\n", c)
    }
#if RELEASE
    /* A list shows nothing of what came and went. */
    :: atomic {
        LEADS(c) && !stopped[c] && (pod[0].ended && !SEEN(c, 0).ended || pod[1].ended && !SEEN(c, 1).ended) ->
        do
        :: p < PODS ->
            if
            :: pod[p].here -> see_pod(c, p)
            :: pod[p].ended && SEEN(c, p).here ->
                SEEN(c, p).here = 0;
                SEEN(c, p).ended = 1;
#ifndef LIST_SHOWS_NODE
                SEEN(c, p).bound = 1
#endif
            :: else
            fi;
            p++
        :: else -> p = 0; break
        od;
        dirty[c] = 1;
        printf("controller %d lists the pods\n", c)
    }
    :: atomic {
        LEADS(c) && !stopped[c] && !SAME_REPORT(c) ->
        see_report(c);
        dirty[c] = 1;
        printf("controller %d sees the report\n", c)
    }
    :: atomic {
        LEADS(c) && !stopped[c] && node_boot[c] != boot ->
        node_boot[c] = boot;
        dirty[c] = 1;
        printf("controller %d sees the boot\n", c)
    }
#endif
    od
}

/* The next leader takes the Lease and lists everything; the one before it may be paused and
   not know. code: kube.lease:lead */
proctype Successor(byte c) {
    byte p;
    do
    :: atomic {
        leads = c + 1;
        do
        :: p < PODS ->
            if
            :: pod[p].here -> see_pod(c, p)
            :: else
            fi;
            p++
        :: else -> p = 0; break
        od;
#if RELEASE
        see_report(c);
        node_boot[c] = boot;
#endif
        dirty[c] = 1;
        printf("controller %d leads\n", c);
        break
    }
    :: break
    od
}

#define CAN_BE_OVER(r) (phase[r] == OVER || phase[r] == LATE)
#ifdef EXPIRE_EARLY
#define LIFE_IS_OVER(r) true
#elif LIVES
/* code: controller.expiry:Expiry._is_over, accounting.reservation:Reservation.is_over */
#define LIFE_IS_OVER(r) (watched[r] == 2 || HAS(marked, r))
#else
/* code: controller.expiry:Expiry._is_over */
#define LIFE_IS_OVER(r) CAN_BE_OVER(r)
#endif

#if LIVES
#define HELD(r) (quota[0].reserved & IDS(r))

/* The controller watches, as long as it runs. code: controller.expiry:Expiry.note */
proctype Watch(byte r) {
end:
    do
    :: atomic { HELD(r) && watched[r] == 0 -> watched[r] = 1 }
    :: atomic {
        HELD(r) && watched[r] == 1 && CAN_BE_OVER(r) ->
        watched[r] = 2;
        dirty[0] = 1;
        printf("the controller has watched request %d for its whole life\n", r)
    }
    od
}

/* A replica of admission watches too. code: admission.witness:Witness.look */
proctype Witness(byte r) {
end:
    do
    :: atomic { HELD(r) && witnessed[r] == 0 -> witnessed[r] = 1 }
#ifdef BELIEVE_EXPIRES
    :: atomic {
        HELD(r) && witnessed[r] == 1 ->
#else
    :: atomic {
        HELD(r) && witnessed[r] == 1 && CAN_BE_OVER(r) ->
#endif
        witnessed[r] = 2;
#ifndef NO_WITNESS
        /* code: admission.witness:Witness._mark */
        marked = marked | BIT(r);
        wrote(0);
        printf("a replica marks request %d as over\n", r)
#endif
    }
    od
}

/* Whenever it does not count just now: it lists the pods, and has watched nothing. */
proctype Restarts() {
    do
    :: atomic {
        !counting ->
        watched[0] = 0;
        watched[1] = 0;
        restart_sees(0);
        restart_sees(1);
        dirty[0] = 1;
        printf("the controller starts\n")
    }
    od
}
#endif
#ifdef ONE_READ
#define DECIDED(r) true
#else
/* When the second read is made, etcd has decided what the first may have come before.
   code: controller.expiry:Expiry._is_missing */
#define DECIDED(r) (phase[r] != LATE)
#endif
#ifdef OVERTAKEN_BY_UID
#define OVERTAKEN(c, r) SEEN(c, POD(r)).here
#else
/* The controller sees the pod at a later version: the request has changed the pod or never will.
   code: controller.expiry:Expiry._is_superseded */
#define OVERTAKEN(c, r) (SEEN(c, POD(r)).here && SEEN(c, POD(r)).version > since[r])
#endif
#ifdef SEEN_BY_UID
#define AS_IT_IS(c, p) SEEN(c, p).here
#else
/* code: controller.expiry:Expiry._was_counted_at */
#define AS_IT_IS(c, p) (SEEN(c, p).here && SEEN(c, p).version >= pod[p].version)
#endif
#ifdef NO_LIVE_READ
#define EXISTS(c, p) false
#else
/* code: controller.expiry:Expiry._exists */
#define EXISTS(c, p) (pod[p].here && !AS_IT_IS(c, p))
#endif

#ifdef COUNT_WITHOUT_SINCE
#define SINCE(r) 0
#else
#define SINCE(r) since[r]
#endif


/* code: controller.expiry:Expiry.gone */
inline find_gone() {
    gone = 0;
    r = 0;
    do
    :: r < REQUESTS ->
        if
        :: !(quota[0].reserved & IDS(r))
        :: (quota[0].reserved & IDS(r)) && RELEASED(c, POD(r)) -> gone = gone | IDS(r)
        :: (quota[0].reserved & IDS(r)) && !RELEASED(c, POD(r)) && OVERTAKEN(c, r) ->
            gone = gone | IDS(r)
        :: (quota[0].reserved & IDS(r)) && !RELEASED(c, POD(r)) && !OVERTAKEN(c, r) &&
           LIFE_IS_OVER(r) && DECIDED(r) && REPORTED(c, POD(r)) && !EXISTS(c, POD(r)) ->
            gone = gone | IDS(r)
        :: else
        fi;
        r++
    :: else -> r = 0; break
    od
}

inline no_snapshot() {
    at[0] = 0;
    at[1] = 0;
    left = 0
}

/* Which pods are counted, as what version, and what is left in files.
   code: accounting.recount:tally */
inline take_snapshot() {
    no_snapshot();
    p = 0;
    do
    :: p < PODS ->
        if
        :: SEEN(c, p).here ->
            at[p] = (SEEN(c, p).under -> SEEN(c, p).version : 0)
#if RELEASE
        :: !SEEN(c, p).here && (!SEEN(c, p).ended || SEEN(c, p).bound) && !FORGOTTEN(c, p) ->
            if
            :: REACHED(c, p) && !HAS(copies[c].live, p) -> left = left | (HAS(copies[c].charged, p) << p)
            :: (!REACHED(c, p) || HAS(copies[c].live, p)) &&
               (SEEN(c, p).ended || HAS(quota[0].identities, p) || NAMES(c, p)) ->
                at[p] = 1
            :: else
            fi
#endif
        :: else
        fi;
        p++
    :: else -> p = 0; break
    od
}

#if RELEASE
/* Nobody needs the line of the pod: a report names the pod, or a report is from after its end. */
#define NO_LINE_NEEDED(c, p) \
    ((NAMES(c, p) && !BOOTED(c)) || REACHED(c, p) || (SEEN(c, p).ended && !SEEN(c, p).bound))
#endif

#ifdef NO_TERM
#define SUPERSEDED(q, c) false
#else
/* code: controller.writing.status_writer:StatusWriter._change, kube.lease:term */
#define SUPERSEDED(q, c) (quota[q].term > c + 1)
#endif

/* By a look at once: nothing would be written, and so nothing is begun. */
#ifdef WRITE_THE_SAME
#define NOTHING_NEW(c) false
#define DIFFERS(q) true
#else
/* code: kube.quotas:QuotaObject.is_stored */
#define DIFFERS(q) (quota[q].pods != pods || quota[q].reserved != kept || !quota[q].counted)
#endif
#ifdef WRITE_THE_SAME
#elif LIVES
#define NOTHING_NEW(c) \
    (quota[0].pods == (at[0] > 0) + (at[1] > 0) && !(quota[0].reserved & gone) && \
     !(HAS(quota[0].reserved, 0) && at[0]) && !(HAS(quota[0].reserved, 1) && at[1]))
#elif COUNT
#define NOTHING_NEW(c) \
    (quota[0].pods == (at[0] > 0) + (at[1] > 0) && !(quota[0].reserved & gone) && \
     !(HAS(quota[0].reserved, 0) && at[POD(0)] > SINCE(0)) && \
     !(HAS(quota[0].reserved, 1) && at[POD(1)] > SINCE(1)) && \
     !(HAS(quota[0].reserved, 2) && at[POD(2)] > SINCE(2)))
#else
#define NOTHING_NEW(c) \
    (quota[0].pods == (at[0] > 0) + (at[1] > 0) && !(quota[0].reserved & gone) && \
     quota[0].retained == HAS(left, 0) + HAS(left, 1) && \
     !(HAS(quota[0].reserved, 0) && at[0]) && !(HAS(quota[0].reserved, 1) && at[1]) && \
     !(HAS(quota[0].identities, 0) && NO_LINE_NEEDED(c, 0)) && \
     !(HAS(quota[0].identities, 1) && NO_LINE_NEEDED(c, 1)))
#endif

/* code: controller.recounter:Recounter._recount */
proctype Controller(byte c) {
    byte gone, left, p, q, r, kept, pods, stays;
    byte at[PODS];
end:
    do
    :: atomic {
        LEADS(c) && dirty[c] ->
        dirty[c] = 0;
#if LIVES
        counting = 1;
#endif
        d_step {
            find_gone();
            take_snapshot();
            if
            :: NOTHING_NEW(c) -> gone = 0; stays = 1
            :: else
            fi;
#ifndef SNAPSHOT_FIRST
            no_snapshot()
#else
            gone = 0
#endif
        };
        if
        :: stays ->
            stays = 0;
            no_snapshot();
#if LIVES
            counting = 0;
#endif
            goto end
        :: else
        fi
    };
        atomic {
            if
            :: !LEADS(c) -> goto end_stopped
            :: else
            fi;
#ifdef SNAPSHOT_FIRST
            find_gone()
#else
            take_snapshot()
#endif
        };
        do
        :: atomic {
            q < QUOTAS ->
            if
            :: SUPERSEDED(q, c) ->
                printf("controller %d meets a later count\n", c);
                goto end_stopped
            :: else
            fi;
            /* code: accounting.recount:recount */
#ifdef EXPIRED_LEAVES_NO_LINE
            kept = quota[q].reserved & ~gone;
#else
            kept = quota[q].reserved;
#endif
            pods = 0;
            stays = 0;
            do
            :: r < REQUESTS ->
                if
                :: (kept & IDS(r)) && at[POD(r)] > SINCE(r) ->
                    kept = kept & ~IDS(r);
                    stays = stays | BIT(POD(r))
                :: else
                fi;
                r++
            :: else -> r = 0; break
            od;
            kept = kept & ~gone;
#if RELEASE
            stays = stays | quota[q].identities;
#endif
            do
            :: p < PODS ->
                if
                :: at[p] > 0 -> pods++
                :: else
                fi;
#if RELEASE
                if
                :: NO_LINE_NEEDED(c, p) ->
                    stays = stays & ~BIT(p)
                :: else
                fi;
#ifdef NO_IDENTITY
                stays = 0;
#endif
#endif
                p++
            :: else -> p = 0; break
            od;
            if
            :: quota[q].exists && (DIFFERS(q)
#if RELEASE
               || quota[q].retained != HAS(left, 0) + HAS(left, 1) || quota[q].identities != stays
#endif
               ) ->
                quota[q].pods = pods;
                quota[q].reserved = kept;
                quota[q].counted = 1;
                quota[q].term = c + 1;
#if RELEASE
                quota[q].retained = HAS(left, 0) + HAS(left, 1);
                quota[q].identities = stays;
#endif
                wrote(q);
                printf("controller %d counts quota %d: pods %d, left in files %d, reservations %d\n",
                    c, q, pods, left, kept);
                check()
            :: else
            fi;
            pods = 0;
            kept = 0;
            stays = 0;
            q++
        }
        :: atomic {
            q == QUOTAS ->
            q = 0;
            gone = 0;
            no_snapshot();
#if LIVES
            counting = 0;
#endif
            break
        }
        od
    od;
end_stopped:
    stopped[c] = 1
}

#endif

#if RELEASE
/* ---- the node ---- */

proctype Scheduler(byte p) {
end:
    atomic {
        pod[p].here ->
        pod[p].bound = 1;
        pod[p].version++;
        printf("pod %d is bound\n", p)
    }
}

/* It makes no cgroup for a pod that is gone from the API. */
proctype Kubelet(byte p) {
end:
    do
    :: atomic {
        pod[p].here && pod[p].bound && !started[p] ->
        started[p] = 1;
        cgroup[p] = 1;
        printf("pod %d runs\n", p)
    }
    :: atomic { cgroup[p] && !filled[p] -> filled[p] = 1; printf("pod %d fills a file\n", p) }
    :: atomic { cgroup[p] && !pod[p].here -> cgroup[p] = 0; printf("pod %d runs no more\n", p) }
    :: atomic { filled[p] && !cgroup[p] -> filled[p] = 0; printf("the file of pod %d goes\n", p) }
    od
}

proctype Reboot() {
    do
    :: atomic {
        boot = 1;
        started[0] = 0; cgroup[0] = 0; filled[0] = 0;
        started[1] = 0; cgroup[1] = 0; filled[1] = 0;
        printf("the node boots\n");
        break
    }
    :: break
    od
}

#define LIVE(p) (cgroup[p] || (pod[p].here && pod[p].bound))
#define REPORTS_ALL \
    (report.boot == boot && report.reached == (pod[0].ended | (pod[1].ended << 1)) && \
     report.live == (LIVE(0) | (LIVE(1) << 1)) && report.charged == (filled[0] | (filled[1] << 1)))

/* The order of a pass is its proof: the pods, then the cgroups, then what is charged. It has no
   memory; a boot in the middle ends it. */
proctype Agent() {
    byte reached, comes, groups, charged;
    bit began;
end:
    do
    :: atomic { !REPORTS_ALL -> began = boot };
#ifdef CGROUPS_BEFORE_PODS
        atomic { groups = cgroup[0] | (cgroup[1] << 1) };
#endif
#ifdef CHARGES_BEFORE_CGROUPS
        atomic { charged = filled[0] | (filled[1] << 1) };
#endif
        atomic {
            reached = pod[0].ended | (pod[1].ended << 1);
            comes = (pod[0].here && pod[0].bound) | ((pod[1].here && pod[1].bound) << 1)
        };
#ifndef CGROUPS_BEFORE_PODS
        atomic { groups = cgroup[0] | (cgroup[1] << 1) };
#endif
#ifndef CHARGES_BEFORE_CGROUPS
        atomic { charged = filled[0] | (filled[1] << 1) };
#endif
        atomic {
            if
            :: began == boot ->
                report.boot = boot;
                report.reached = reached;
                report.live = comes | groups;
                report.charged = charged;
                printf("the agent reports: reached %d, live %d, charged %d\n",
                    reached, report.live, charged)
            :: else
            fi;
            began = 0;
            reached = 0;
            comes = 0;
            groups = 0;
            charged = 0
        }
    od
}
#endif

/* When nothing is left to do, no reservation is left, and nothing is held for what is not there. */
#if ADMISSION
#define CHARGED_RIGHT(q) (!quota[q].exists || USED(q) == PODS_HERE)
#else
#define CHARGED_RIGHT(q) (USED(q) == TAKEN(q))
#endif
proctype Quiet() {
    timeout;
    assert(quota[0].reserved == 0);
    assert(CHARGED_RIGHT(0));
#if QUOTAS == 2
    assert(quota[1].reserved == 0);
    assert(CHARGED_RIGHT(1))
#endif
}

init {
    atomic {
#if COUNT
        pod[0].here = 1;
        pod[0].under = 1;
        pod[0].version = 1;
        owes[0] = 1;
        see_pod(0, 0);
        quota[0].pods = 1;
#endif
#if PREMADE
        quota[0].exists = 1;
        quota[0].counted = 1;
#endif
#if PREMADE == 2
        quota[1].exists = 1;
        quota[1].counted = 1;
#endif
        watch_quotas(0);
#if REPLICAS == 2
        watch_quotas(1);
        run Replica(1);
        run TakeBack(1);
#endif
        run Replica(0);
        run TakeBack(0);
        run ApiServer(0);
#if !RESTART
        run ApiServer(1);
#endif
#if REQUESTS == 3
        run ApiServer(2);
#endif
#if ADMISSION
        run Count(0);
        run Count(1);
#if FENCE
        run Administrator();
#endif
#else
        run Controller(0);
        run Informers(0);
#if COUNT || RESTART
        run Controller(1);
        run Informers(1);
        run Successor(1);
#endif
        run Users(0);
#if COUNT
        run Users(1);
#endif
#if LIVES
        run Watch(0);
        run Watch(1);
        run Witness(0);
        run Witness(1);
        run Restarts();
#endif
#endif
#if RELEASE
        /* The other pod comes where there is room, and stays unbound. */
        run Scheduler(0);
        run Kubelet(0);
        run Agent();
#if !RESTART
        run Reboot();
#endif
#endif
#if !LIVES
        run Quiet()
#endif
    }
}
