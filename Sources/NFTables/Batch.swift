import CLibMNL
import CLibNFTNL
import Glibc
import NetworkTypes

/// One nftables transaction as netlink bytes: all of it happens, or nothing.
struct Batch: ~Copyable {
  private var memory: UnsafeMutableRawBufferPointer
  private var used = 0
  private var sequence: UInt32
  private var lastMessage = 0
  private(set) var messages = 0
  /// Which object a message was about, by sequence number, for errors.
  private(set) var objects: [(sequence: UInt32, object: String)] = []
  private var scratch = ElementBytes()

  /// No message is longer: an element list is cut at 60,000 bytes (its length field has 16 bits).
  private static let room = 1 << 17
  private static let listLimit = 60_000
  /// So many addresses are taken from their identities before they get their new ones: then the kernel still has each one's
  /// bucket in its caches. Each address's two operations stand side by side in a plan.
  private static let moveLimit = 256

  init(sequence: UInt32) {
    self.sequence = sequence
    memory = .allocate(byteCount: 1 << 18, alignment: 16)
    let header = nftnl_batch_begin(cursor, next())
    used += Int(header?.pointee.nlmsg_len ?? 0)
    messages += 1
  }

  deinit { memory.deallocate() }

  var nextSequence: UInt32 { sequence }
  var byteCount: Int { used }

  private var cursor: UnsafeMutablePointer<CChar> {
    // The buffer is bound to no type: libmnl and libnftnl write bytes.
    (memory.baseAddress.unsafelyUnwrapped + used).assumingMemoryBound(to: CChar.self)
  }

  private mutating func next() -> UInt32 {
    defer { sequence &+= 1 }
    return sequence
  }

  private mutating func reserve() {
    guard memory.count - used < Self.room else { return }
    let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: memory.count * 2, alignment: 16)
    larger.copyMemory(from: UnsafeRawBufferPointer(rebasing: memory[..<used]))
    memory.deallocate()
    memory = larger
  }

  /// Writes one message: `body` appends the payload behind the header.
  mutating func message(
    _ type: Int, family: IPFamily, flags: Int32, object: @autoclosure () -> String,
    body: (UnsafeMutablePointer<nlmsghdr>) -> Void
  ) {
    reserve()
    let number = next()
    guard
      let header = nftnl_nlmsg_build_hdr(
        cursor, UInt16(type), UInt16(family.nfproto), UInt16(flags), number)
    else { return }
    body(header)
    lastMessage = used
    used += (Int(header.pointee.nlmsg_len) + 3) & ~3
    messages += 1
    objects.append((number, object()))
  }

  // MARK: Operations

  /// Writes operations so that each finds what it names: chains before the verdicts that lead to them, deletions
  /// before additions with the same key, chains removed last. Elements of one map share messages.
  mutating func append(_ operations: [Operation]) {
    var changes: [SlotChanges] = []
    var positions: [Slot: Int] = [:]
    // Most have the map of the one before.
    var last = (slot: Slot(family: .v4, map: .frontends), position: -1)
    func position(_ entry: MapEntry) -> Int {
      let slot = Slot(family: entry.family, map: entry.map)
      if last.position >= 0, last.slot == slot { return last.position }
      if positions[slot] == nil {
        positions[slot] = changes.count
        changes.append(SlotChanges(slot: slot))
      }
      last = (slot, positions[slot] ?? 0)
      return last.position
    }
    for operation in operations {
      switch operation {
      case .addTable(let family, let flags): addTable(Layout.tableName, family, flags)
      case .deleteTable(let family): deleteTable(family)
      case .addMap(let family, let map): addMap(MapSpec(map, family), family)
      case .addChain(let family, let chain): addChain(chain, family)
      case .replaceRules(let family, let chain): replaceRules(chain, family)
      case .deleteChain, .deleteMap: break
      case .add(let entry): changes[position(entry)].additions.append(entry)
      case .delete(let entry):
        let position = position(entry)
        if entry.map == .identities, changes[position].deletions.count >= Self.moveLimit {
          let change = changes[position]
          changes[position] = SlotChanges(slot: change.slot)
          elements(NFT_MSG_DELSETELEM, change.slot, change.deletions)
          elements(NFT_MSG_NEWSETELEM, change.slot, change.additions)
        }
        changes[position].deletions.append(entry)
      }
    }
    for change in changes { elements(NFT_MSG_DELSETELEM, change.slot, change.deletions) }
    for change in changes { elements(NFT_MSG_NEWSETELEM, change.slot, change.additions) }
    for case .deleteChain(let family, let name) in operations { deleteChain(name, family) }
    // Behind the chains whose rules name them.
    for case .deleteMap(let family, let name) in operations { deleteMap(family, name) }
  }

  private struct Slot: Hashable {
    var family: IPFamily
    var map: MapName
  }

  /// What happens to one map's elements.
  private struct SlotChanges {
    var slot: Slot
    var deletions: [MapEntry] = []
    var additions: [MapEntry] = []
  }

  mutating func addTable(_ name: String, _ family: IPFamily, _ flags: TableFlags) {
    message(
      Int(NFT_MSG_NEWTABLE.rawValue), family: family, flags: NLM_F_CREATE, object: "table \(family.tableFamily) \(name)"
    ) { header in
      mnl_attr_put_strz(header, UInt16(NFTA_TABLE_NAME.rawValue), name)
      // libnftnl would do, but for a table without flags: that must not ask for a change of those it has.
      if !flags.isEmpty { mnl_attr_put_u32(header, UInt16(NFTA_TABLE_FLAGS.rawValue), flags.rawValue.bigEndian) }
    }
  }

  private mutating func deleteTable(_ family: IPFamily) {
    message(
      Int(NFT_MSG_DELTABLE.rawValue), family: family, flags: 0,
      object: "table \(family.tableFamily) \(Layout.tableName)"
    ) { header in mnl_attr_put_strz(header, UInt16(NFTA_TABLE_NAME.rawValue), Layout.tableName) }
  }

  private mutating func addMap(_ spec: MapSpec, _ family: IPFamily) {
    message(Int(NFT_MSG_NEWSET.rawValue), family: family, flags: NLM_F_CREATE, object: "map \(spec.name.rawValue)") {
      [id = UInt32(messages)] header in
      guard let set = nftnl_set_alloc() else { return }
      defer { nftnl_set_free(set) }
      spec.fill(set, family: family, id: id)
      nftnl_set_nlmsg_build_payload(header, set)
    }
  }

  private mutating func deleteMap(_ family: IPFamily, _ name: String) {
    message(Int(NFT_MSG_DELSET.rawValue), family: family, flags: 0, object: "map \(name)") { header in
      guard let set = nftnl_set_alloc() else { return }
      defer { nftnl_set_free(set) }
      nftnl_set_set_str(set, UInt16(NFTNL_SET_TABLE.rawValue), Layout.tableName)
      nftnl_set_set_str(set, UInt16(NFTNL_SET_NAME.rawValue), name)
      nftnl_set_nlmsg_build_payload(header, set)
    }
  }

  private mutating func addChain(_ chain: ChainSpec, _ family: IPFamily) {
    message(Int(NFT_MSG_NEWCHAIN.rawValue), family: family, flags: NLM_F_CREATE, object: "chain \(chain.name)") {
      header in
      guard let object = nftnl_chain_alloc() else { return }
      defer { nftnl_chain_free(object) }
      nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TABLE.rawValue), Layout.tableName)
      nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_NAME.rawValue), chain.name)
      if let hook = chain.hook {
        nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TYPE.rawValue), hook.kind.rawValue)
        nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue), hook.hook)
        nftnl_chain_set_s32(object, UInt16(NFTNL_CHAIN_PRIO.rawValue), hook.priority)
        nftnl_chain_set_u32(object, UInt16(NFTNL_CHAIN_POLICY.rawValue), UInt32(NF_ACCEPT))
      }
      nftnl_chain_nlmsg_build_payload(header, object)
    }
    replaceRules(chain, family)
  }

  private mutating func replaceRules(_ chain: ChainSpec, _ family: IPFamily) {
    message(Int(NFT_MSG_DELRULE.rawValue), family: family, flags: 0, object: "rules of \(chain.name)") { header in
      RuleSpec.withEmptyRule(chain: chain.name, family: family) { nftnl_rule_nlmsg_build_payload(header, $0) }
    }
    for rule in chain.rules {
      message(
        Int(NFT_MSG_NEWRULE.rawValue), family: family, flags: NLM_F_CREATE | NLM_F_APPEND,
        object: "rule \(chain.name): \(rule)"
      ) { header in
        rule.withRule(chain: chain.name, family: family) { nftnl_rule_nlmsg_build_payload(header, $0) }
      }
    }
  }

  private mutating func deleteChain(_ name: String, _ family: IPFamily) {
    message(Int(NFT_MSG_DELCHAIN.rawValue), family: family, flags: 0, object: "chain \(name)") { header in
      guard let object = nftnl_chain_alloc() else { return }
      defer { nftnl_chain_free(object) }
      nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_TABLE.rawValue), Layout.tableName)
      nftnl_chain_set_str(object, UInt16(NFTNL_CHAIN_NAME.rawValue), name)
      nftnl_chain_nlmsg_build_payload(header, object)
    }
  }

  // MARK: Elements

  /// Written attribute by attribute: libnftnl would build a heap object per element.
  private mutating func elements(_ type: nf_tables_msg_types, _ slot: Slot, _ entries: [MapEntry]) {
    var rest = entries[...]
    while let first = rest.first {
      var bytes = scratch
      let isDeletion = type == NFT_MSG_DELSETELEM
      message(
        Int(type.rawValue), family: slot.family, flags: isDeletion ? 0 : NLM_F_CREATE,
        object: "\(isDeletion ? "delete" : "add") \(first)\(rest.count > 1 ? " and \(rest.count - 1) more" : "")"
      ) { header in
        mnl_attr_put_strz(header, UInt16(NFTA_SET_ELEM_LIST_TABLE.rawValue), Layout.tableName)
        mnl_attr_put_strz(header, UInt16(NFTA_SET_ELEM_LIST_SET.rawValue), slot.map.rawValue)
        guard let list = mnl_attr_nest_start(header, UInt16(NFTA_SET_ELEM_LIST_ELEMENTS.rawValue)) else { return }
        while let entry = rest.first, header.pointee.nlmsg_len < Self.listLimit {
          Self.write(entry, isDeletion: isDeletion, header, &bytes)
          rest = rest.dropFirst()
        }
        mnl_attr_nest_end(header, list)
      }
      scratch = bytes
    }
  }

  private static func write(
    _ entry: MapEntry, isDeletion: Bool, _ header: UnsafeMutablePointer<nlmsghdr>, _ bytes: inout ElementBytes
  ) {
    element(header) {
      bytes.clear()
      entry.writeKey(&bytes)
      value(header, NFTA_SET_ELEM_KEY, bytes.bytes)
      guard !isDeletion else { return }
      if let verdict = entry.verdict {
        nest(header, UInt16(NFTA_SET_ELEM_DATA.rawValue)) {
          nest(header, UInt16(NFTA_DATA_VERDICT.rawValue)) {
            mnl_attr_put_u32(
              header, UInt16(NFTA_VERDICT_CODE.rawValue), UInt32(bitPattern: verdict.code).bigEndian)
            if let chain = verdict.chain { mnl_attr_put_strz(header, UInt16(NFTA_VERDICT_CHAIN.rawValue), chain) }
          }
        }
      } else {
        bytes.clear()
        entry.writeData(&bytes)
        if !bytes.bytes.isEmpty { value(header, NFTA_SET_ELEM_DATA, bytes.bytes) }
      }
      if entry.isCounted {
        nest(header, UInt16(NFTA_SET_ELEM_EXPR.rawValue)) {
          mnl_attr_put_strz(header, UInt16(NFTA_EXPR_NAME.rawValue), "counter")
        }
      }
    }
    bytes.clear()
    guard entry.writeEnd(&bytes) else { return }
    element(header) {
      mnl_attr_put_u32(
        header, UInt16(NFTA_SET_ELEM_FLAGS.rawValue), UInt32(NFT_SET_ELEM_INTERVAL_END.rawValue).bigEndian)
      value(header, NFTA_SET_ELEM_KEY, bytes.bytes)
    }
  }

  private static func element(_ header: UnsafeMutablePointer<nlmsghdr>, _ body: () -> Void) {
    nest(header, UInt16(NFTA_LIST_ELEM.rawValue), body)
  }

  private static func nest(_ header: UnsafeMutablePointer<nlmsghdr>, _ type: UInt16, _ body: () -> Void) {
    guard let start = mnl_attr_nest_start(header, type) else { return }
    body()
    mnl_attr_nest_end(header, start)
  }

  private static func value(
    _ header: UnsafeMutablePointer<nlmsghdr>, _ type: nft_set_elem_attributes, _ bytes: [UInt8]
  ) {
    nest(header, UInt16(type.rawValue)) {
      mnl_attr_put(header, UInt16(NFTA_DATA_VALUE.rawValue), bytes.count, bytes)
    }
  }

  // MARK: Sending

  /// Ends the batch and hands its bytes over. The last message asks for an answer: without one we could not tell a
  /// success from a batch the kernel never saw.
  ///
  /// - Parameter isTrial: leaves the end away. The kernel then works through everything, answers, and takes it back.
  mutating func finish(isTrial: Bool = false, _ send: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    if messages > 1 {
      let header = (memory.baseAddress.unsafelyUnwrapped + lastMessage).assumingMemoryBound(to: nlmsghdr.self)
      header.pointee.nlmsg_flags |= UInt16(NLM_F_ACK)
    }
    if !isTrial {
      let header = nftnl_batch_end(cursor, next())
      used += Int(header?.pointee.nlmsg_len ?? 0)
      messages += 1
    }
    try send(UnsafeRawBufferPointer(rebasing: memory[..<used]))
  }
}

extension IPFamily {
  /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
  var nfproto: UInt32 { self == .v4 ? 2 : 10 }
  /// As `nft` calls it.
  var tableFamily: String { self == .v4 ? "ip" : "ip6" }
}
