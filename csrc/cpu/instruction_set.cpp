// Chooses the instruction set once, at first use, from a list in order of preference.
#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace gelu_ext::cpu {
namespace {

std::vector<const InstructionSet*> available_sets() {
  std::vector<const InstructionSet*> sets;
  for (const InstructionSet* set : {avx512_bf16_set(), avx512_set(), avx2_set(), baseline_set()}) {
    if (set != nullptr && set->available()) sets.push_back(set);
  }
  return sets;
}

const InstructionSet* find_set(const char* name) {
  for (const InstructionSet* set : available_sets()) {
    if (std::strcmp(set->name, name) == 0) return set;
  }
  return nullptr;
}

const InstructionSet* default_set() {
  const char* wanted = std::getenv("GELU_EXT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return available_sets().front();
  if (const InstructionSet* set = find_set(wanted)) return set;
  throw std::runtime_error(std::string("GELU_EXT_CPU_ISA: expected one of ") + instruction_sets() + ", got '" + wanted +
                           "'");
}

std::atomic<const InstructionSet*> chosen{nullptr};

}  // namespace

const InstructionSet& chosen_set() {
  const InstructionSet* set = chosen.load(std::memory_order_relaxed);
  if (set == nullptr) {
    set = default_set();
    chosen.store(set, std::memory_order_relaxed);
  }
  return *set;
}

const char* instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const InstructionSet* set : available_sets()) {
      if (!joined.empty()) joined += ',';
      joined += set->name;
    }
    return joined;
  }();
  return names.c_str();
}

const char* instruction_set() { return chosen_set().name; }

bool set_instruction_set(const char* name) {
  const InstructionSet* set = find_set(name);
  if (set != nullptr) chosen.store(set, std::memory_order_relaxed);
  return set != nullptr;
}

}  // namespace gelu_ext::cpu
