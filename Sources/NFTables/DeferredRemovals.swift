import NetworkTypes

/// Elements and chains that packets under way may still look up.
struct DeferredRemovals {
  private var entries: [MapEntry.Key: MapEntry] = [:]
  private var chains: [ChainKey: Operation] = [:]
  private var foreignMaps: [Operation] = []

  private struct ChainKey: Hashable {
    var family: IPFamily
    var name: String
  }

  var isEmpty: Bool { entries.isEmpty && chains.isEmpty && foreignMaps.isEmpty }

  mutating func add(_ operations: [Operation]) {
    for operation in operations {
      switch operation {
      case .delete(let entry): entries[entry.key] = entry
      case .deleteChain(let family, let name): chains[ChainKey(family: family, name: name)] = operation
      case .deleteMap: foreignMaps.append(operation)
      default: break
      }
    }
  }

  mutating func take() -> [Operation] {
    defer { self = DeferredRemovals() }
    return entries.values.map(Operation.delete) + chains.values + foreignMaps
  }

  /// What is added again is not removed later; its old value gives way in the same transaction.
  mutating func reclaiming(_ operations: [Operation]) -> [Operation] {
    guard !isEmpty else { return operations }
    var result: [Operation] = []
    for operation in operations {
      switch operation {
      case .add(let entry):
        if let old = entries.removeValue(forKey: entry.key) {
          if old == entry { continue }
          result.append(.delete(old))
        }
      case .addChain(let family, let chain): chains[ChainKey(family: family, name: chain.name)] = nil
      default: break
      }
      result.append(operation)
    }
    return result
  }
}
