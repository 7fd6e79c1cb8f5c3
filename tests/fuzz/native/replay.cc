// Every fuzz target on seeds, random bytes and the files given, without a fuzzer: so that targets
// neither rot nor find anything within seconds. One executable for each target.
#include <fstream>
#include <iterator>
#include <vector>

#include "tests/native/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  using edge_rt::test::Random;
  if (argc > 1) {
    for (int i = 1; i < argc; ++i) {
      std::ifstream file(argv[i], std::ios::binary);
      const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(content.data()), content.size());
    }
    return 0;
  }
  edge_rt::test::watchdog(2 * edge_rt::test::kLongestSection);
  Random random(1);
  for (int round = 0; round < 400; ++round) {
    // Exact memory: a target that reads past its input must fail.
    edge_rt::test::Exact<uint8_t> data(random.between(0, round % 10 ? 300 : 3000));
    for (size_t i = 0; i < data.size(); ++i)
      data[i] = static_cast<uint8_t>(round % 3 ? random.bits() : random.between(0, 3));
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  return edge_rt::test::finish(argv[0]);
}
