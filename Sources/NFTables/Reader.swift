import CLibMNL
import CLibNFTNL
import DataplaneModel
import NetworkTypes

/// What the kernel has of one family's table, elements apart.
struct KernelTable {
  var exists = false
  var flags: TableFlags = []
  /// Chain name -> its rules in libnftnl's words, and its hook.
  var chains: [String: (hook: HookSpec?, rules: [String])] = [:]
  /// Map name -> flags, key type, key length.
  var maps: [String: KernelMap] = [:]
}

/// What the kernel has of a table itself.
struct KernelTableHeader {
  var name = ""
  var flags: TableFlags = []
  /// The port ID of the socket that owns it.
  var owner: UInt32?
}

struct KernelMap: Equatable {
  var flags: UInt32
  var keyLength: UInt32
  var keyDisplayType: UInt32

  init(flags: UInt32, keyLength: UInt32, keyDisplayType: UInt32) {
    self.flags = flags
    self.keyLength = keyLength
    self.keyDisplayType = keyDisplayType
  }
  init(_ spec: MapSpec) {
    self.init(flags: spec.kernelFlags, keyLength: spec.keyLength, keyDisplayType: spec.keyDisplayType)
  }
}

extension Connection {
  /// Names of all tables of a family, other people's too.
  func tableNames(_ family: IPFamily) throws(NFTablesError) -> [String] { try tables(family).map(\.name) }

  /// Our table of that family, nil where there is none.
  func ownTable(_ family: IPFamily) throws(NFTablesError) -> KernelTableHeader? {
    try tables(family).first { $0.name == Layout.tableName }
  }

  private func tables(_ family: IPFamily) throws(NFTablesError) -> [KernelTableHeader] {
    var tables: [KernelTableHeader] = []
    try request(Int(NFT_MSG_GETTABLE.rawValue), family: family.nfproto, dump: true, attributes: []) { message in
      var table = KernelTableHeader()
      message.forEachAttribute(skipping: 4) { type, value in
        if type == NFTA_TABLE_NAME.rawValue {
          table.name = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
        } else if type == NFTA_TABLE_FLAGS.rawValue, value.count >= 4 {
          table.flags = TableFlags(rawValue: UInt32(bigEndian: value.loadUnaligned(as: UInt32.self)))
        } else if type == NFTA_TABLE_OWNER.rawValue, value.count >= 4 {
          table.owner = UInt32(bigEndian: value.loadUnaligned(as: UInt32.self))
        }
      }
      tables.append(table)
    }
    return tables
  }

  func readTable(_ family: IPFamily) throws(NFTablesError) -> KernelTable {
    var table = KernelTable()
    guard let found = try ownTable(family) else { return table }
    (table.exists, table.flags) = (true, found.flags)
    try request(Int(NFT_MSG_GETCHAIN.rawValue), family: family.nfproto, dump: true, attributes: []) { message in
      guard let chain = nftnl_chain_alloc() else { return }
      defer { nftnl_chain_free(chain) }
      guard nftnl_chain_nlmsg_parse(message.header, chain) == 0,
        let owner = nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TABLE.rawValue)),
        String(cString: owner) == Layout.tableName,
        let name = nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_NAME.rawValue))
      else { return }
      var hook: HookSpec?
      if nftnl_chain_is_set(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)),
        let type = nftnl_chain_get_str(chain, UInt16(NFTNL_CHAIN_TYPE.rawValue)),
        let kind = HookSpec.Kind(rawValue: String(cString: type))
      {
        hook = HookSpec(
          kind: kind, hook: nftnl_chain_get_u32(chain, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue)),
          priority: nftnl_chain_get_s32(chain, UInt16(NFTNL_CHAIN_PRIO.rawValue)))
      }
      table.chains[String(cString: name), default: (nil, [])].hook = hook
    }
    try request(
      Int(NFT_MSG_GETRULE.rawValue), family: family.nfproto, dump: true,
      attributes: [
        (Int(NFTA_RULE_TABLE.rawValue), Layout.tableName)
      ]
    ) { message in
      guard let rule = nftnl_rule_alloc() else { return }
      defer { nftnl_rule_free(rule) }
      guard nftnl_rule_nlmsg_parse(message.header, rule) == 0,
        let name = nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue))
      else { return }
      let chain = String(cString: name)
      table.chains[chain, default: (nil, [])].rules.append(RuleSpec.text(of: rule))
    }
    try request(
      Int(NFT_MSG_GETSET.rawValue), family: family.nfproto, dump: true,
      attributes: [
        (Int(NFTA_SET_TABLE.rawValue), Layout.tableName)
      ]
    ) { message in
      guard let set = nftnl_set_alloc() else { return }
      defer { nftnl_set_free(set) }
      guard nftnl_set_nlmsg_parse(message.header, set) == 0,
        let name = nftnl_set_get_str(set, UInt16(NFTNL_SET_NAME.rawValue))
      else { return }
      table.maps[String(cString: name)] = KernelMap(
        flags: nftnl_set_get_u32(set, UInt16(NFTNL_SET_FLAGS.rawValue)),
        keyLength: nftnl_set_get_u32(set, UInt16(NFTNL_SET_KEY_LEN.rawValue)),
        keyDisplayType: nftnl_set_get_u32(set, UInt16(NFTNL_SET_KEY_TYPE.rawValue)))
    }
    return table
  }

  /// Hands every element of one map to `body`, an interval's two ends joined.
  func readElements(_ family: IPFamily, _ map: MapName, _ body: (MapEntry) -> Void) throws(NFTablesError) {
    let isInterval = MapSpec(map, family).isInterval
    var bounds: [(key: [UInt8], data: [UInt8], isEnd: Bool)] = []
    try request(
      Int(NFT_MSG_GETSETELEM.rawValue), family: family.nfproto, dump: true,
      attributes: [
        (Int(NFTA_SET_ELEM_LIST_TABLE.rawValue), Layout.tableName),
        (Int(NFTA_SET_ELEM_LIST_SET.rawValue), map.rawValue),
      ]
    ) { message in
      message.forEachAttribute(skipping: 4) { type, list in
        guard type == NFTA_SET_ELEM_LIST_ELEMENTS.rawValue else { return }
        attributes(in: list) { _, element in
          let element = KernelElement(element)
          if isInterval {
            bounds.append((element.key, element.data, element.isEnd))
          } else {
            body(MapEntry(family: family, map: map, element))
          }
        }
      }
    }
    guard isInterval else { return }
    // Ends sort before a start with the same key: an interval ends where the next begins.
    bounds.sort { left, right in
      left.key == right.key ? left.isEnd && !right.isEnd : left.key.lexicographicallyPrecedes(right.key)
    }
    var index = 0
    while index < bounds.count {
      let bound = bounds[index]
      index += 1
      // An end without a start: a leading end at the key space's first key is how nft closes it; else not ours.
      guard !bound.isEnd else { continue }
      var end: [UInt8]?
      if index < bounds.count, bounds[index].isEnd {
        end = bounds[index].key
        index += 1
      }
      body(MapEntry(family: family, map: map, key: bound.key, end: end, data: bound.data, verdict: nil))
    }
  }
}

extension KernelMessage {
  /// For libnftnl's parsers.
  var header: UnsafePointer<nlmsghdr>? {
    whole.baseAddress?.assumingMemoryBound(to: nlmsghdr.self)
  }
}

extension MapEntry {
  /// Of a map without intervals.
  init(family: IPFamily, map: MapName, _ element: KernelElement) {
    self.init(
      family: family, map: map, key: element.key, end: nil, data: element.data, verdict: element.verdict)
  }
}

/// One element's attributes.
struct KernelElement {
  var key: [UInt8] = []
  var data: [UInt8] = []
  var verdict: Verdict?
  var count: TrafficCount?
  var isEnd = false

  init(_ bytes: UnsafeRawBufferPointer) {
    var key: [UInt8] = []
    var data: [UInt8] = []
    var verdict: Verdict?
    var count: TrafficCount?
    var isEnd = false
    attributes(in: bytes) { type, value in
      switch type {
      case UInt32(NFTA_SET_ELEM_KEY.rawValue): key = Self.value(value)
      case UInt32(NFTA_SET_ELEM_DATA.rawValue):
        data = Self.value(value)
        verdict = Self.verdict(value)
      case UInt32(NFTA_SET_ELEM_EXPR.rawValue): count = TrafficCount(expression: value)
      case UInt32(NFTA_SET_ELEM_FLAGS.rawValue) where value.count >= 4:
        isEnd =
          UInt32(bigEndian: value.loadUnaligned(as: UInt32.self)) & UInt32(NFT_SET_ELEM_INTERVAL_END.rawValue) != 0
      default: break
      }
    }
    (self.key, self.data, self.verdict, self.count, self.isEnd) = (key, data, verdict, count, isEnd)
  }

  private static func value(_ bytes: UnsafeRawBufferPointer) -> [UInt8] {
    var result: [UInt8] = []
    attributes(in: bytes) { type, value in
      if type == UInt32(NFTA_DATA_VALUE.rawValue) { result = Array(value) }
    }
    return result
  }

  private static func verdict(_ bytes: UnsafeRawBufferPointer) -> Verdict? {
    var result: Verdict?
    attributes(in: bytes) { type, value in
      guard type == UInt32(NFTA_DATA_VERDICT.rawValue) else { return }
      var code: Int32 = 0
      var chain = ""
      attributes(in: value) { type, value in
        if type == UInt32(NFTA_VERDICT_CODE.rawValue), value.count >= 4 {
          code = Int32(bigEndian: value.loadUnaligned(as: Int32.self))
        } else if type == UInt32(NFTA_VERDICT_CHAIN.rawValue) {
          chain = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
        }
      }
      result =
        switch code {
        case 0: .drop
        case 1: .accept
        case -1: .continue
        case -3: .jump(chain)
        case -4: .goto(chain)
        case -5: .return
        default: nil
        }
    }
    return result
  }
}
