// The result of a workload: named metrics with a unit and one value per repetition, printed as JSON for
// the harness. Options are the same for every workload.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

struct Options {
  std::size_t bytes = 4096;  // size of one allocation, if the workload has only one
  unsigned values = 3;       // repetitions reported
  double seconds = 0.05;     // shortest duration of one repetition
};

struct Metric {
  std::string name;
  std::string unit;  // "s" for seconds per operation, "" for ratios and counts
  std::vector<double> values;
};

using Report = std::vector<Metric>;

inline void print(const Report& report) {
  std::printf("{");
  for (std::size_t m = 0; m < report.size(); ++m) {
    std::printf("%s\"%s\": {\"unit\": \"%s\", \"values\": [", m == 0 ? "" : ", ", report[m].name.c_str(),
                report[m].unit.c_str());
    for (std::size_t v = 0; v < report[m].values.size(); ++v) {
      std::printf("%s%.9g", v == 0 ? "" : ", ", report[m].values[v]);
    }
    std::printf("]}");
  }
  std::printf("}\n");
}
