// From where to where callgrind counts, for programs that run with --instr-atstart=no. Each pair of marks makes a profile.
#include <valgrind/callgrind.h>

void count_from_here(void) { CALLGRIND_START_INSTRUMENTATION; }
void count_to_here(void) {
  CALLGRIND_DUMP_STATS;
  CALLGRIND_STOP_INSTRUMENTATION;
}
