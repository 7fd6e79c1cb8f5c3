// The objects that make an engine's life safe from signals: what they do when they are dropped is
// C++'s, which no signal handler interrupts.
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>

#include <chrono>
#include <memory>

#include "edge_rt/runtime/bindings.h"
#include "edge_rt/runtime/charges.h"
#include "edge_rt/runtime/gate.h"
#include "edge_rt/runtime/runtime.h"

namespace edge_rt {

using namespace nb::literals;

namespace {

// An engine's runtime. Dropped with its engine, it is closed, but nobody waits for a silent drive
// under the GIL: what is not closed in time is put into `unanswered`. An object of C++, because
// Python loses what a signal handler raises in a `__del__`.
class Kept {
 public:
  explicit Kept(nb::list unanswered) : unanswered_(std::move(unanswered)) {}
  ~Kept() {
    if (runtime.is_none()) return;
    try {
      auto& r = nb::cast<Runtime&>(runtime);
      if (r.close([] { return true; })) return;  // mostly there is nothing to wait for
      const auto end = std::chrono::steady_clock::now() + kPatience;
      bool done = false;
      if (!at_exit) {
        const Unlocked unlocked;
        done = r.close([&] { return std::chrono::steady_clock::now() >= end; });
      }
      if (!done) abandon();
    } catch (...) {
      abandon();
    }
  }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  void abandon() {
    if (!runtime.is_none()) unanswered_.append(runtime);
    runtime = nb::none();
  }

  nb::object runtime = nb::none();
  // The interpreter ends: who gives the GIL away may not get it back, and its thread ends right
  // there.
  static inline bool at_exit = false;

 private:
  static constexpr auto kPatience = std::chrono::milliseconds(100);
  nb::list unanswered_;
};

// A caller's memory: the charge for it ends with it, whoever frees it.
struct Lent {
  std::unique_ptr<Charge> charge;
  std::unique_ptr<float[]> data;
};

using Rows = nb::ndarray<nb::memview, float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// All that is charged, as memory, in rows; the charge itself is empty then.
Rows rows(Charge& charge, size_t n_cols) {
  const auto n_bytes = static_cast<size_t>(charge.n_bytes());
  const size_t n = n_bytes / sizeof(float);
  if (n == 0 || n_cols == 0 || n_bytes % sizeof(float) != 0 || n % n_cols != 0)
    throw nb::value_error("what is charged is not some whole rows");
  auto lent = std::make_unique<Lent>();
  lent->data.reset(new float[n]);
  lent->charge = charge.split(charge.n_bytes());
  float* const data = lent->data.get();
  nb::capsule owner(lent.get(), [](void* p) noexcept { delete static_cast<Lent*>(p); });
  (void)lent.release();
  return Rows(data, {n / n_cols, n_cols}, owner);
}

}  // namespace

void bind_life_cycle(nb::module_& m) {
  nb::class_<Hold>(m, "Hold")
      .def("__enter__", [](nb::handle self) { return nb::borrow(self); })
      .def("__exit__", [](Hold& hold, nb::args) { hold.release(); });
  nb::class_<Kept>(m, "Kept")
      .def(nb::init<nb::list>(), "unanswered"_a)
      .def("abandon", &Kept::abandon)
      .def_rw("runtime", &Kept::runtime, nb::for_setter(nb::arg("runtime").none()));
  nb::class_<Gate>(m, "Gate").def(nb::init<>()).def("enter", &Gate::enter);
  nb::class_<Charge>(m, "Charge")
      .def_prop_ro("n_bytes", &Charge::n_bytes)
      .def("release", &Charge::release)
      .def("split", &Charge::split, "n_bytes"_a)
      .def("rows", &rows, "n_cols"_a)
      .def("__enter__", [](nb::handle self) { return nb::borrow(self); })
      .def("__exit__", [](Charge& charge, nb::args) { charge.release(); });
  nb::class_<Charges>(m, "Charges")
      .def(nb::init<>())
      .def("add", &Charges::add, "n_bytes"_a)
      .def_prop_ro("held", &Charges::held);

  m.def("calls_in_progress", [] { return calls_in_progress; });
  m.def("begin_exit", [] { Kept::at_exit = true; });
  m.def("forget_calls", [] { calls_in_progress = 0; });  // of threads that a fork left behind
  m.def("keep_forever", [](nb::handle object) { object.inc_ref(); }, "object"_a);
  m.def("set_leak_warnings", [](bool on) { nb::set_leak_warnings(on); }, "on"_a);
}

}  // namespace edge_rt
