// Threads that hand reads to the drive and back: a few microseconds of work, at once.
#pragma once

#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace edge_rt {

// Asks for short slices of processor time: where compute threads have all the cores, Linux (from
// 6.12 on) then lets the calling thread run as soon as a read has come back, not when their slices
// of some milliseconds are over. Elsewhere nothing changes.
inline void ask_for_short_slices() {
  struct {  // sched_attr of linux/sched/types.h, first version
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  attributes.size = sizeof attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = 100'000;  // ns, the least
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace edge_rt
